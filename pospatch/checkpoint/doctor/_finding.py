"""What a check found, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["SEVERITIES", "Finding", "error", "note", "warning"]

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One finding.

    Args:
        severity: "error": it will be read otherwise than it says, or not at all; "warning": it is read as it says and something
            near it is wrong or cuts inputs; "note": worth knowing.
        got: what stands there, or what will be used.
        wanted: what it should be, or what the checkpoint says.
        remedy: what to do.
        check: name of the check.
    """

    severity: str
    got: str
    wanted: str
    remedy: str
    check: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.check}: got {self.got}; wanted {self.wanted}; {self.remedy}"


def error(got: str, wanted: str, remedy: str) -> Finding:
    """A checkpoint that is misread or cannot be read."""
    return Finding("error", got, wanted, remedy)


def warning(got: str, wanted: str, remedy: str) -> Finding:
    """A checkpoint that is read rightly beside something that is wrong."""
    return Finding("warning", got, wanted, remedy)


def note(got: str, wanted: str, remedy: str) -> Finding:
    """Something worth knowing."""
    return Finding("note", got, wanted, remedy)
