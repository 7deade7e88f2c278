"""What is advised, as data and as text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Advice", "Suggestion"]


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A method, or several one on top of the other, with options and the reasons.

    needs: "nothing" where it works on the pretrained model as it is, "training" where it does not.
    """

    methods: tuple[str, ...]
    options: dict[str, Any]
    needs: str
    why: tuple[str, ...]

    @property
    def call(self) -> str:
        """The Python call."""
        named = repr(self.methods[0]) if len(self.methods) == 1 else repr(list(self.methods))
        return f"pospatch.apply({', '.join(['model', named, *(f'{k}={v!r}' for k, v in self.options.items())])})"


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Suggestions, the best first; reasons are facts they rest on; lengths in tokens."""

    model: str
    family: str
    mechanism: str
    trained_length: int | None
    length: int
    factor: float | None
    suggestions: tuple[Suggestion, ...]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    cache_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, each suggestion with its call."""
        calls = [{**asdict(each), "call": each.call} for each in self.suggestions]
        plain: dict[str, Any] = json.loads(json.dumps({**asdict(self), "suggestions": calls}))
        return plain

    def __str__(self) -> str:
        known = f"trained for {self.trained_length} tokens" if self.trained_length else "trained length not stated"
        times = f", {self.factor:g} x" if self.factor and self.factor > 1 else ""
        lines = [f"{self.model} ({self.family}, {self.mechanism}), {known}; wanted: {self.length}{times}", ""]
        if not self.suggestions:
            lines.append("Nothing has to be changed.")
        for number, each in enumerate(self.suggestions, start=1):
            lines.append(f"{number}. {each.call}   (needs {each.needs})")
            lines += [f"   - {why}" for why in each.why]
        for head, items in (("Why", self.reasons), ("Mind", self.warnings)):
            lines += ["", head + ":", *(f"- {item}" for item in items)] if items else []
        return "\n".join(lines)
