"""From the measured windows to figures: perplexities, change at a known length, cost, rank."""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch

from pospatch.comparison._entries import Entry
from pospatch.comparison._measure import Windows
from pospatch.evaluate._result import Cells
from pospatch.evaluate.short_guard import paired

__all__ = ["figures", "ranked"]


def figures(entries: list[Entry], windows: Windows, cells: Cells, short: int) -> list[dict[str, Any]]:
    """One dictionary an entry, the control first; `short` is the length at which the change is measured."""
    control = _cells(entries[0], windows, cells)
    longest, found = windows.lengths[-1], []
    for entry in entries:
        own = _cells(entry, windows, cells)
        found.append(
            {
                "label": entry.label,
                "methods": list(entry.methods),
                "options": entry.options,
                "needs": entry.needs,
                "rows": [{"length": length, **_row(own[length])} for length in windows.lengths],
                "short": {"length": short, **_change(own[short], control[short])},
                "time": _ratio(own[longest], control[longest], "seconds"),
                "memory": _ratio(own[longest], control[longest], "peak"),
            }
        )
    return found


def ranked(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries by perplexity at the longest length, those that could not read it last."""
    return sorted(found, key=lambda each: (each["rows"][-1]["loss"] is None, each["rows"][-1]["loss"] or 0.0))


def _cells(entry: Entry, windows: Windows, cells: Cells) -> dict[int, list[dict[str, Any]]]:
    """The windows of an entry by length, none where the model cannot read so far."""
    found: dict[int, list[Any]] = {length: [] for length in windows.lengths}
    for name, length, _ in windows.cells(entry):
        found[length].append(cells[name])
    return {length: [] if None in every else every for length, every in found.items()}


def _row(own: list[dict[str, Any]]) -> dict[str, Any]:
    if not own:
        return {"loss": None, "perplexity": None, "n": 0, "seconds": None, "peak_bytes": None}
    losses = [loss for window in own for loss in window["losses"]]
    loss = math.fsum(losses) / len(losses)
    finite = math.isfinite(loss)
    return {
        "loss": loss if finite else None,
        "perplexity": math.exp(loss) if finite and loss < 700 else None,
        "n": len(losses),
        "seconds": statistics.median(window["seconds"] for window in own),
        "peak_bytes": max(window["peak"] for window in own),
    }


def _change(own: list[dict[str, Any]], control: list[dict[str, Any]]) -> dict[str, Any]:
    if not own or not control:
        return {"change": None, "error": None, "percent": None}
    sums = []
    for new, old in zip(own, control, strict=True):
        after, before = (torch.tensor(each["losses"], dtype=torch.float64) for each in (new, old))
        sums.append([len(after), after.sum().item(), before.sum().item(), (after - before).square().sum().item()])
    return {name: value for name, value in paired(sums).items() if name in ("change", "error", "percent")}


def _ratio(own: list[dict[str, Any]], control: list[dict[str, Any]], name: str) -> float | None:
    if not own or not control:
        return None
    pick = min if name == "seconds" else statistics.median  # the fastest window is the least disturbed one
    before = pick(window[name] for window in control)
    return pick(window[name] for window in own) / before if before else None
