"""Losses, time and memory of one entry on windows that end at the same tokens at every length."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pospatch.comparison._entries import Entry
from pospatch.evaluate._head import SlicedHead
from pospatch.evaluate._limits import reach
from pospatch.evaluate._memory import peak_memory
from pospatch.evaluate._result import Cells
from pospatch.evaluate._tokens import Tokens

__all__ = ["Windows", "measure"]


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Where the windows end, and how many of their last tokens are scored."""

    tokens: Tokens
    lengths: list[int]
    ends: list[int]
    k: int

    def cells(self, entry: Entry) -> list[tuple[str, int, int]]:
        """Name, length and end of every window of an entry."""
        key = entry.key
        return [(f"{key}|{length}@{end}", length, end) for length in self.lengths for end in self.ends]


def measure(model: Any, entry: Entry, windows: Windows, cells: Cells, advance: Callable[[], None]) -> None:
    """Fill the cells of one entry that are still empty; null stands where the model cannot read so far."""
    todo = [cell for cell in windows.cells(entry) if cell[0] not in cells]
    if not todo:
        return
    head, last = SlicedHead(model), reach(model)
    for name, length, end in todo:
        cells[name] = None if last is not None and length > last else _window(head, windows, length, end)
        advance()


def _window(head: SlicedHead, windows: Windows, length: int, end: int) -> dict[str, Any]:
    ids = windows.tokens.window(end - length, end).to(head.device)
    started = time.perf_counter()
    with peak_memory(head.device) as peak:
        losses = head.losses(ids, length - windows.k - 1)
    seconds = time.perf_counter() - started
    return {"losses": [round(loss, 5) for loss in losses.tolist()], "seconds": round(seconds, 4), "peak": peak()}
