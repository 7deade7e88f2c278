"""One picture of the demo: the curve that breaks and the one that does not, the key, and what a few training steps did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pospatch.evaluate import Result
from pospatch.evaluate._plot import draw_perplexity, figure

__all__ = ["picture"]

_RIGHT, _WRONG = "#7cc7ad", "#f6e3d8"
_BEFORE, _AFTER = "#9db7cc", "#0072B2"


def picture(curves: Sequence[Result], keys: Sequence[Result], tuned: dict[str, Any]) -> Any:
    """The figure, not yet saved."""
    sheet = figure(14, 4.6)
    layout: Any = sheet.get_layout_engine()
    layout.set(w_pad=0.12)  # inches between the panels
    left, middle, right = sheet.subplots(1, 3, width_ratios=[1.9, 1.15, 1])
    draw_perplexity(left, curves)
    left.set_title("SmolLM2-135M reads the King James Bible, no training", fontsize=10, loc="left")
    _draw_keys(middle, keys)
    _draw_tuned(right, tuned)
    return sheet


def _draw_keys(axes: Any, results: Sequence[Result]) -> None:
    """Methods down, depths across: what was said, and whether it was the key."""
    from matplotlib.colors import ListedColormap

    rights = [[row["rate"] for row in result.rows] for result in results]
    axes.imshow(rights, cmap=ListedColormap([_WRONG, _RIGHT]), vmin=0, vmax=1, aspect="auto")
    for down, result in enumerate(results):
        for across, row in enumerate(result.rows):
            answer = row["answers"][0]
            verdict = "read" if answer["right"] else f"said {_shown(answer['said'])}"
            axes.text(across, down, f"{answer['key']}\n{verdict}", ha="center", va="center", fontsize=9)
    axes.set_xticks(range(len(results[0].rows)), [f"{row['depth']:.0%} deep" for row in results[0].rows])
    axes.set_yticks(range(len(results)), [result.label.replace(" x", "\nx") for result in results])
    for border in range(1, len(results)):
        axes.axhline(border - 0.5, color="white", lw=2)
    for border in range(1, len(results[0].rows)):
        axes.axvline(border - 0.5, color="white", lw=2)
    axes.set_title(f"a key hidden in {results[0].lengths[0]} tokens, no training", fontsize=10, loc="left")
    _bare(axes)


def _shown(said: str) -> str:
    words = " ".join(said.split())
    return repr(words if len(words) <= 10 else words[:9] + "…") if words else "nothing"


def _draw_tuned(axes: Any, tuned: dict[str, Any]) -> None:
    """Perplexity of the same held-out tokens before and after, with each length of context."""
    names = ("base", "target")
    for offset, when, colour in ((-0.2, "before", _BEFORE), (0.2, "after", _AFTER)):
        values = [tuned[when][name]["perplexity"] or float("nan") for name in names]
        places = [index + offset for index in range(len(names))]
        axes.bar(places, values, width=0.36, color=colour, label=when)
        for place, value in zip(places, values, strict=True):
            axes.annotate(f"{value:.1f}", (place, value), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xticks(range(len(names)), [f"{tuned['before'][name]['length']} tokens\nof context" for name in names])
    axes.set_ylabel("perplexity, held-out text")
    axes.margins(y=0.25)
    axes.legend(frameon=False, fontsize=9, loc="upper right", ncols=2)
    axes.set_title(f"yarn and {tuned['steps']} LoRA steps", fontsize=10, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="x", length=0)


def _bare(axes: Any) -> None:
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
