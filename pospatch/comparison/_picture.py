"""One picture of a comparison: perplexity by length, and what each method costs at a known length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pospatch.comparison._entries import CONTROL
from pospatch.evaluate._plot import COLOURS, GREY, figure, frame, logarithmic, plain, tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["picture"]


def picture(content: dict[str, Any]) -> Figure:
    """Two panels side by side, the same colour for the same entry; the control is grey."""
    entries = content["entries"]
    others = [each["label"] for each in entries if each["label"] != CONTROL]
    colours = {label: COLOURS[index % len(COLOURS)] for index, label in enumerate(others)} | {CONTROL: GREY}
    sheet = figure(10.5, 4.5 + 0.12 * max(len(entries) - 6, 0))
    left, right = sheet.subplots(1, 2, width_ratios=[3, 2])
    _curves(left, content, colours)
    _changes(right, entries, colours)
    return sheet


def _curves(axes: Axes, content: dict[str, Any], colours: dict[str, str]) -> None:
    lengths, drawn = content["lengths"], False
    for each in content["entries"]:
        values = [float("nan") if row["perplexity"] is None else row["perplexity"] for row in each["rows"]]
        drawn = drawn or any(value > 0 for value in values)
        style = "o--" if each["label"] == CONTROL else "o-"
        axes.plot(lengths, values, style, color=colours[each["label"]], label=plain(each["label"]), lw=2, ms=4.5,
                  zorder=3 if each["label"] == CONTROL else 2)  # fmt: skip
    if drawn:
        logarithmic(axes)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [tokens(length) for length in lengths])
    axes.minorticks_off()
    trained = content["model"]["positions"].get("trained_length")
    if trained and lengths[0] < trained < lengths[-1]:
        axes.axvline(trained, color=GREY, ls=":", lw=1)
    axes.set_xlabel("length read (tokens)")
    axes.set_ylabel("perplexity (log scale)")
    name = plain(content["model"]["name"])
    axes.set_title(f"{name}: last {content['options']['k']} tokens of a window", fontsize=10, loc="left")
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    frame(axes)
    axes.figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)


def _changes(axes: Axes, entries: list[dict[str, Any]], colours: dict[str, str]) -> None:
    shown = [each for each in entries if each["label"] != CONTROL and each["short"]["change"] is not None]
    for place, each in enumerate(shown):
        change, error = each["short"]["change"], 2 * each["short"]["error"]
        axes.barh(place, change, xerr=error, color=colours[each["label"]], ecolor="#333333", capsize=2, height=0.6)
    axes.set_yticks(range(len(shown)), [plain(each["label"]) for each in shown], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color=GREY, lw=1)
    axes.set_xlabel("change of the loss (nats a token)")
    length = entries[0]["short"]["length"]
    axes.set_title(f"against unpatched at {length} tokens", fontsize=10, loc="left")
    frame(axes)
