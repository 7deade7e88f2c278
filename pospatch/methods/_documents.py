"""Positions that depend on the length of the document they stand in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._base import Forward, Index

__all__ = ["Strided", "documents"]


@dataclass(frozen=True, kw_only=True)
class Strided(Index):
    """How a table made longer on a grid is read: position n * factor for position n of a document of at most `short`
    tokens, n for a longer one."""

    name: ClassVar[str] = "learned(resize='grid')"
    by_row: ClassVar[bool] = True

    short: int
    factor: int

    def positions(self, positions: Tensor, geometry: Geometry, forward: Forward) -> Tensor:
        first, length = documents(positions, forward.real)
        grows = geometry.causal and self.factor > 1  # two-sided attention has no cache
        if grows and ((first > 0) & (first <= self.short) & (length > self.short)).any():
            raise BadOption(
                f"{self.name}: this step grows a cached document beyond the {self.short} tokens of the old table, and its "
                "keys stand at the rows of a short one; run it again without the cache, or apply learned with short='plain'"
            )
        strided = (positions * self.factor).clamp(max=geometry.length - 1)  # only pads can stand further
        return torch.where(length <= self.short, strided, positions)

    def furthest(self, geometry: Geometry) -> int:
        return self.short * self.factor


def documents(positions: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
    """For each token of (batch, length): the first position of its document in this call, and the document's length so far.

    A document is a run of positions that count up by one; packed documents start again, pads do not count.
    """
    starts = torch.nn.functional.pad(positions[:, 1:] != positions[:, :-1] + 1, (1, 0))
    document = starts.long().cumsum(dim=1)
    ends = positions + 1
    if real is not None:
        ends = ends.masked_fill(~real, 0)
    empty = torch.zeros_like(positions)
    length = empty.scatter_reduce(1, document, ends, "amax")
    first = empty.scatter_reduce(1, document, positions, "amin", include_self=False)
    return first.gather(1, document), length.gather(1, document)
