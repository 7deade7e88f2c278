"""What `inspect` says of a path: the same as of a model, and what it claims, what transformers uses, what was found."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from pospatch.checkpoint.doctor._evidence import Evidence
from pospatch.checkpoint.doctor._finding import Finding
from pospatch.checkpoint.doctor.checks import examine
from pospatch.checkpoint.doctor.checks.lengths import evaluation_length, tokenizer_length
from pospatch.inspection import Inspection

__all__ = ["Diagnosis", "report"]

COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


@dataclass
class Diagnosis(Inspection):
    """An inspection of a checkpoint whose weights were not loaded.

    Args:
        source: path or repository.
        kind: "model", "peft adapter", "pospatch adapter" or "gguf".
        claims: rows of what, what the checkpoint says, what transformers uses.
        findings: the worst first.
    """

    source: str = ""
    kind: str = "model"
    claims: list[dict[str, str]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True where nothing is misread."""
        return not any(item.severity == "error" for item in self.findings)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "findings": [item.to_dict() for item in self.findings]}

    def __str__(self) -> str:
        return _tables(self)


def report(seen: Evidence) -> Diagnosis:
    """All that is said of a checkpoint."""
    used = seen.used if seen.base is None else seen.base.used
    stack = [{"method": method.name, **method.options()} for method in seen.stack]
    return Diagnosis(
        family=getattr(used.config, "model_type", None) or "unknown",
        model=used.model_class or "unknown",
        method=stack[-1]["method"] if stack else None,
        stack=stack,
        sites=list(used.sites),
        trained_length=_trained(seen),
        length=used.length,
        native=not seen.own,
        weights=sorted(seen.weights.own or ()),
        source=seen.source,
        kind=seen.kind,
        claims=list(_rows(seen)),
        findings=examine(seen),
    )


def _trained(seen: Evidence) -> int | None:
    """The length before any scaling, where something states it."""
    used = seen.used if seen.base is None else seen.base.used
    base = seen.record.get("base") if isinstance(seen.record, dict) else None
    stated = [base.get("max_position_embeddings")] if isinstance(base, dict) else []
    stated += [item.get("original_max_position_embeddings") for item in used.rope.values()]
    return next((value for value in stated if isinstance(value, int)), used.trained)


def _rows(seen: Evidence) -> list[dict[str, str]]:
    """What the checkpoint says beside what is used."""
    rows = [("patch", _stack(seen), "pospatch alone" if seen.own else "natively")] if seen.stack else []
    if seen.adapter is not None and seen.kind == "peft adapter":
        name = str(seen.adapter.get("base_model_name_or_path"))
        rows.append(("base", name, seen.base.source if seen.base is not None else "not at hand"))
    rows += _rotary(seen)
    rows += [("table", _shape(seen, table.name), f"{table.shape} ({table.name})") for table in seen.used.tables]
    if seen.used.length:
        rows.append(("length", _said_length(seen), str(seen.used.length)))
    if seen.tokenizer is not None and seen.kind == "model":
        rows.append(
            ("tokenizer cuts at", str(tokenizer_length(seen) or "no length"), "with truncation=True and in pipelines")
        )
    if (cut := evaluation_length(seen)) is not None and seen.kind == "model":
        rows.append(("lm-eval cuts at", cut[1], str(cut[0])))
    return [{"what": what, "says": says, "used": used} for what, says, used in rows]


def _rotary(seen: Evidence) -> list[tuple[str, str, str]]:
    used, said = seen.used, seen.claims
    if seen.gguf is not None:
        kinds = seen.gguf.scaling + "".join(f", {name}" for name in seen.gguf.factors)
        theta = str(seen.gguf.get("rope.freq_base") or "none stated")
    else:
        kinds = ", ".join(f"{item.value} ({item.where})" for item in said.types) or "nothing"
        theta = ", ".join(f"{item.value:g} ({item.where})" for item in said.thetas) or "nothing"
    if not used.rotates and not said.groups and not said.thetas:
        return []
    shown = ", ".join(_of(label, _kind(item)) for label, item in used.rope.items())
    thetas = ", ".join(_of(label, f"{value:g}") for label, value in used.thetas.items())
    periods = ", ".join(_of(label, _period(spectrum)) for label, (spectrum, _) in used.spectra.items())
    slow = [("slowest pair turns once in", "", f"{periods} tokens")] if periods else []
    return [("rotary scaling", kinds, shown or "none"), ("rope_theta", theta, thetas or "none"), *slow]


def _kind(parameters: dict[str, Any]) -> str:
    shown = [
        f"{name}={parameters[name]!r:.20}"
        for name in ("factor", "original_max_position_embeddings")
        if name in parameters
    ]
    return " ".join([str(parameters.get("rope_type")), *shown])


def _period(spectrum: Any) -> str:
    turning = spectrum[spectrum > 0]
    return f"{math.tau / float(turning.min()):.0f}" if turning.numel() else "no"


def _of(label: str | None, text: str) -> str:
    return text if label is None else f"{label}: {text}"


def _shape(seen: Evidence, name: str) -> str:
    from pospatch.checkpoint.doctor.checks.lengths import stored

    shape = stored(seen, name)[1]
    return "not seen" if shape is None else f"{shape} in the weights"


def _said_length(seen: Evidence) -> str:
    from pospatch.checkpoint.doctor._claims import text_of
    from pospatch.engine._geometry import LENGTH_FIELDS

    if seen.gguf is not None:
        return f"{seen.gguf.get('context_length')} (context_length)"
    found = [f"{text_of(seen.raw)[name]} ({name})" for name in LENGTH_FIELDS if name in text_of(seen.raw)]
    return found[0] if found else "nothing"


def _stack(seen: Evidence) -> str:
    return " + ".join(method.name for method in seen.stack)


def _tables(seen: Diagnosis) -> str:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    out = StringIO()
    console = Console(file=out, width=120, highlight=False)
    title = f"{seen.source} ({seen.kind})"
    table = Table("", "the checkpoint says", "transformers uses", title=escape(title), title_justify="left")
    for row in seen.claims:
        table.add_row(*(escape(row[name]) for name in ("what", "says", "used")))
    if seen.sites:
        out.write(Inspection.__str__(seen))
    console.print(table)
    if not seen.findings:
        console.print("nothing found that is read otherwise than it says")
    for finding in seen.findings:
        console.print(f"[bold {COLOURS[finding.severity]}]{finding.severity}[/] {finding.check}")
        for name in ("got", "wanted", "remedy"):
            label = "do" if name == "remedy" else name
            console.print(f"  {label:<7}{escape(getattr(finding, name))}")
    return out.getvalue()
