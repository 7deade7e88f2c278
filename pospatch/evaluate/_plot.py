"""Pictures of results: perplexity against position or length, passkey by length and depth."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pospatch.errors import BadOption, PospatchError
from pospatch.evaluate._result import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pospatch.evaluate._result import Result

__all__ = [
    "COLOURS",
    "GREY",
    "check_kind",
    "draw_changes",
    "draw_correlations",
    "draw_curves",
    "draw_heatmaps",
    "draw_passkey",
    "draw_perplexity",
    "draw_shares",
    "draw_speeds",
    "draw_table",
    "figure",
    "frame",
    "logarithmic",
    "plain",
    "plot",
    "save_figure",
    "tokens",
]

# Okabe and Ito's colours, told apart with any colour vision.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#666666"


def plot(results: Sequence[Result], path: Path) -> Path:
    """Draw results of one task and protocol into one PNG and return its path; the task's own `draw` makes the figure.

    Raises:
        BadOption: no results, or of different tasks or protocols.
    """
    check_kind(results)
    task = importlib.import_module(f"pospatch.evaluate.{results[0].task}")
    return save_figure(task.draw(results), path)


def check_kind(results: Sequence[Result]) -> None:
    """Refuse what must not share a picture.

    Raises:
        BadOption: no results, or of different tasks or protocols.
    """
    kinds = {(each.task, each.protocol) for each in results}
    if len(kinds) != 1:
        raise BadOption(f"one picture shows results of one task and protocol, got {sorted(kinds) or 'none'}")


def draw_heatmaps(results: Sequence[Result]) -> Figure:
    """One map of length and depth a result, side by side."""
    sheet = figure(1.2 + 3.4 * len(results), 1.8 + 0.36 * _map_rows(results[0]))
    for index, result in enumerate(results):
        draw_passkey(sheet.add_subplot(1, len(results), index + 1), result)
    return sheet


def draw_curves(results: Sequence[Result]) -> Figure:
    """Perplexity of every result in one diagram."""
    sheet = figure(7.2, 4.2)
    draw_perplexity(sheet.add_subplot(), results)
    return sheet


def draw_changes(results: Sequence[Result]) -> Figure:
    """Change of the loss at each length with twice its standard error, one colour a result."""
    sheet = figure(7.2, 3.6)
    axes = sheet.add_subplot()
    for index, result in enumerate(results):
        rows = [row for row in result.rows if row["change"] is not None]
        places = [result.lengths.index(row["length"]) + 0.12 * (index - (len(results) - 1) / 2) for row in rows]
        changes, errors = [row["change"] for row in rows], [2 * row["error"] for row in rows]
        axes.errorbar(
            places, changes, errors, fmt="o", color=COLOURS[index % len(COLOURS)], label=result.label, capsize=3
        )
    axes.axhline(0, color=GREY, lw=1, ls="--")
    axes.set_xticks(range(len(results[0].lengths)), [tokens(length) for length in results[0].lengths])
    axes.set_xlim(-0.5, len(results[0].lengths) - 0.5)
    axes.set_xlabel("length read (tokens)")
    axes.set_ylabel("change of the loss (nats a token)")
    axes.set_title(f"{plain(results[0].model['name'])}: patched minus {results[0].protocol}", fontsize=10, loc="left")
    frame(axes)
    axes.legend(frameon=False, fontsize=9)
    return sheet


def draw_speeds(results: Sequence[Result]) -> Figure:
    """Tokens a second and bytes against the prompt's length, side by side."""
    sheet = figure(10.0, 3.4)
    panels = (("prompt_speed", "prompt (tokens/s)", 1), ("decode_speed", "generation (tokens/s)", 1),
              ("peak_bytes", "peak of memory (MiB)", 2**20))  # fmt: skip
    for place, (name, title, unit) in enumerate(panels):
        axes = sheet.add_subplot(1, len(panels), place + 1)
        for index, result in enumerate(results):
            values = [row[name] / unit for row in result.rows]
            axes.plot(result.lengths, values, "o-", color=COLOURS[index % len(COLOURS)], label=result.label, ms=4)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("prompt (tokens)")
        axes.set_title(title, fontsize=10, loc="left")
        frame(axes)
    sheet.axes[0].legend(frameon=False, fontsize=9)
    return sheet


def draw_shares(results: Sequence[Result], wanted: str = "rate") -> Figure:
    """A share against the length, with its 95 % interval where the rows have one."""
    sheet = figure(6.4, 3.8)
    axes = sheet.add_subplot()
    for index, result in enumerate(results):
        colour, values = COLOURS[index % len(COLOURS)], [row[wanted] for row in result.rows]
        axes.plot(result.lengths, values, "o-", color=colour, label=result.label, ms=4.5)
        if "low" in result.rows[0]:
            low, high = ([row[end] for row in result.rows] for end in ("low", "high"))
            axes.fill_between(result.lengths, low, high, color=colour, alpha=0.15, lw=0)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("length (tokens)")
    axes.set_ylabel(wanted)
    axes.set_title(f"{plain(results[0].model['name'])}: {results[0].task.replace('_', ' ')}", fontsize=10, loc="left")
    frame(axes)
    axes.legend(frameon=False, fontsize=9)
    return sheet


def draw_correlations(results: Sequence[Result]) -> Figure:
    """Spearman's correlation with the base against the length."""
    return draw_shares(results, "spearman")


def draw_table(results: Sequence[Result]) -> Figure:
    """Scores of subtasks, one row each, lengths across; results side by side."""
    names = list(dict.fromkeys(row["subtask"] for row in results[0].rows))
    sheet = figure(2.4 + 2.6 * len(results), 1.4 + 0.36 * len(names))
    for index, result in enumerate(results):
        axes = sheet.add_subplot(1, len(results), index + 1)
        cells = {(row["subtask"], row["length"]): row["score"] for row in result.rows}
        scores = [[cells[name, length] for length in result.lengths] for name in names]
        axes.imshow(scores, cmap=_share_colours(), vmin=0, vmax=1, aspect="auto")
        for down, row in enumerate(scores):
            for across, value in enumerate(row):
                axes.text(across, down, f"{value:.2f}", ha="center", va="center", fontsize=9)
        axes.set_xticks(range(len(result.lengths)), [tokens(length) for length in result.lengths])
        axes.set_yticks(range(len(names)), names)
        axes.set_title(f"{result.task}, {result.label}", fontsize=10, loc="left")
        axes.tick_params(length=0)
    return sheet


def _share_colours() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("share", ["#f6e3d8", "#9fd0bd", "#009E73"])


def _map_rows(result: Result) -> int:
    return len({row["depth"] for row in result.rows})


def figure(width: float, height: float) -> Figure:
    """An empty figure of the given size in inches.

    Raises:
        PospatchError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PospatchError("pictures need matplotlib: pip install 'pospatch[evaluate]'") from error
    return Figure(figsize=(width, height), dpi=160, layout="constrained")


def save_figure(sheet: Figure, path: Path) -> Path:
    """Write a figure as PNG, making the folder where needed; errors as of `write_bytes`."""
    held = BytesIO()
    sheet.savefig(held, format="png", facecolor="white")
    return write_bytes(path, held.getvalue())


def draw_perplexity(axes: Axes, results: Sequence[Result]) -> None:
    """One line a result, perplexity on a logarithmic axis, the trained length as a vertical line."""
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    by_position = results[0].protocol == "by_position"
    for index, result in enumerate(results):
        places, values = _points(result, by_position)
        axes.plot(places, values, "o-", color=COLOURS[index % len(COLOURS)], label=result.label, lw=2, ms=4.5)
    drawn = any(value > 0 for result in results for value in _points(result, by_position)[1])  # a null is no point
    _mark_trained_length(axes, results)
    if drawn:
        logarithmic(axes)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tokens(value)))
    axes.xaxis.set_major_locator(MultipleLocator(2 ** math.ceil(math.log2(max(results[0].lengths[-1], 8) / 8))))
    axes.set_xlim(left=0)
    axes.set_xlabel("position in the text (tokens)" if by_position else "length read (tokens)")
    axes.set_ylabel("perplexity (log scale)")
    axes.set_title(_title(results[0]), fontsize=10, loc="left")
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    frame(axes)
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def logarithmic(axes: Axes) -> None:
    """A logarithmic axis of plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_passkey(axes: Axes, result: Result) -> None:
    """A table of cells, length across and depth down, with the count in each; the last row is the control."""
    depths: list[float | None] = sorted({row["depth"] for row in result.rows if not row["control"]})
    if any(row["control"] for row in result.rows):
        depths.append(None)
    cells = {(row["length"], row["depth"]): row for row in result.rows}
    shares = [[cells[length, depth]["rate"] for length in result.lengths] for depth in depths]
    axes.imshow(shares, cmap=_share_colours(), vmin=0, vmax=1, aspect="auto")
    for across, length in enumerate(result.lengths):
        for down, depth in enumerate(depths):
            cell = cells[length, depth]
            axes.text(across, down, f"{cell['right']}/{cell['trials']}", ha="center", va="center", fontsize=9)
    axes.set_xticks(range(len(result.lengths)), [tokens(length) for length in result.lengths])
    axes.set_yticks(
        range(len(depths)), ["nothing hidden" if depth is None else f"{100 * depth:.0f} %" for depth in depths]
    )
    axes.set_xlabel("context length (tokens)")
    axes.set_ylabel("depth")
    axes.set_title(f"{result.task.replace('_', ' ')}, {result.label}", fontsize=10, loc="left")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _points(result: Result, by_position: bool) -> tuple[list[float], list[float]]:
    rows = [row for row in result.rows if not by_position or row["length"] == result.lengths[-1]]
    places = [(row["start"] + row["end"]) / 2 if by_position else row["length"] for row in rows]
    return places, [float("nan") if row["perplexity"] is None else row["perplexity"] for row in rows]


def _mark_trained_length(axes: Axes, results: Sequence[Result]) -> None:
    lengths: set[Any] = {result.model.get("positions", {}).get("trained_length") for result in results} - {None}
    if len(lengths) != 1:
        return
    trained = lengths.pop()
    if trained > results[0].lengths[-1]:
        return
    axes.axvline(trained, color=GREY, ls="--", lw=1)
    axes.annotate(
        f"trained to {trained}", (trained, 0.98), xycoords=("data", "axes fraction"), xytext=(4, 0),
        textcoords="offset points", fontsize=8, color=GREY, rotation=90, va="top",
    )  # fmt: skip


def _title(result: Result) -> str:
    extra = f", last {result.options['k']} tokens" if result.protocol == "last_k" else ""
    return f"{plain(result.model['name'])}: {result.task} {result.protocol.replace('_', ' ')}{extra}"


def tokens(value: float) -> str:
    """A number of tokens, in k where it is a multiple of 512.

    >>> tokens(1536)
    '1.5k'
    """
    return f"{value / 1024:g}k" if value >= 1024 and value % 512 == 0 else f"{value:g}"


def plain(words: str) -> str:
    """Words in which matplotlib sees no formula."""
    return words.replace("$", r"\$")


def frame(axes: Axes) -> None:
    """No lines above and at the right."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
