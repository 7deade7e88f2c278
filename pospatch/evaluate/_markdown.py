"""Results as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pospatch.evaluate._result import Result

__all__ = ["escaped", "markdown"]


def markdown(results: Sequence[Result]) -> str:
    """The rows of every result under a line that says what they are."""
    return "\n".join(f"{_head(each)}\n\n{_table(each.rows)}" for each in results)


def escaped(words: str) -> str:
    """Words that mean nothing in Markdown or HTML, on one line."""
    for mark in "\\`*_[]<>|#$":
        words = words.replace(mark, "\\" + mark)
    return " ".join(words.split())


def _head(result: Result) -> str:
    model = f"{result.model.get('name')} ({result.model.get('dtype')})"
    lines = [
        f"**{escaped(result.task)}**, protocol {escaped(result.protocol)}: {escaped(result.label)}, "
        f"model {escaped(model)}"
    ]
    if result.text is not None:
        begins = escaped(repr(result.text.get("begins")))
        lines.append(f"Text: {result.text.get('characters')} characters, begins {begins}, "
                     f"SHA-256 {result.text.get('sha256')}")  # fmt: skip
    return "  \n".join(lines)


def _table(rows: list[dict[str, Any]]) -> str:
    """The columns and figures that the command line shows; single answers stand in the JSON alone."""
    if not rows:
        return "no rows\n"
    names = [name for name in rows[0] if name != "answers"]
    cells = [names, ["---"] * len(names), *([_cell(row[name]) for name in names] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escaped(str(value))
