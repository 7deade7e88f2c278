"""Ratios against length: one panel a kind of work, one line a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pospatch.bench._report import Report, grouped
from pospatch.evaluate._plot import COLOURS, GREY, figure, frame, tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]


def draw(report: Report) -> Figure:
    """Time as a ratio to plain attention (full lines) and to the reference form (dashed), with the middle half of the pairs."""
    works = list(dict.fromkeys(row["work"] for row in report.rows))
    sheet = figure(1.0 + 4.6 * len(works), 4.2)
    for index, work in enumerate(works):
        axes = sheet.add_subplot(1, len(works), index + 1)
        lines = {method: rows for (each, method), rows in grouped(report.rows).items() if each == work}
        for number, (method, rows) in enumerate(lines.items()):
            colour = COLOURS[number % len(COLOURS)]
            _line(axes, rows, "plain", f"{method} / plain", color=colour, marker="o")
            _line(axes, rows, "reference", f"{method} / reference", color=colour, marker="s", ls="--")
        axes.axhline(1.0, color=GREY, lw=1)
        _scales(axes, sorted({row["length"] for row in report.rows}))
        axes.set_title(f"{report.model}, {report.level}: {work}", fontsize=10)
        axes.legend(fontsize=7, frameon=False)
        frame(axes)
    return sheet


def _line(axes: Axes, rows: list[dict[str, Any]], against: str, label: str, **style: Any) -> None:
    there = [row for row in rows if against in row["time_ratio"]]
    if not there:
        return
    seen = [row["time_ratio"][against] for row in there]
    spread = [[each["median"] - each["low"] for each in seen], [each["high"] - each["median"] for each in seen]]
    axes.errorbar(
        [row["length"] for row in there], [each["median"] for each in seen], yerr=spread, label=label, lw=1.5,
        markersize=4, capsize=2, **style,
    )  # fmt: skip


def _scales(axes: Axes, lengths: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [tokens(length) for length in lengths])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel("length in tokens")
    axes.set_ylabel("time as a ratio")
