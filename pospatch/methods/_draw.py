"""Methods that draw positions in training and leave evaluation as it is."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.geometry import Geometry
from pospatch.methods._base import Forward, Index
from pospatch.methods._options import integer

__all__ = ["Drawn"]


@dataclass(frozen=True, kw_only=True)
class Drawn(Index):
    """Positions of training drawn from a range of `length`; the true ones in evaluation, to the bit."""

    family: ClassVar[str] = "positions"
    training_only: ClassVar[bool] = True

    length: int | None = integer(None, low=2, high=2**22, optional=True)

    def positions(self, positions: Tensor, geometry: Geometry, forward: Forward) -> Tensor:
        draw = forward.generator()
        if draw is None:
            return positions
        reach = self.target_length(geometry)
        drawn = self.drawn(positions, _tokens_of(positions, forward), reach, draw)
        _warn_full(self.name, positions, reach)
        return drawn

    def drawn(self, positions: Tensor, tokens: Tensor, reach: int, draw: torch.Generator) -> Tensor:
        """New positions (batch, length) below `reach` for true ones, from `draw`; tokens of each row are (batch, 1)."""
        raise NotImplementedError

    def furthest(self, geometry: Geometry) -> int:
        return self.target_length(geometry)

    def target_length(self, geometry: Geometry) -> int:
        return self.length or geometry.length


def _tokens_of(positions: Tensor, forward: Forward) -> Tensor:
    """Tokens of each row, (batch, 1), at least 1: one more than the largest position of what is no pad."""
    if forward.real is not None:
        positions = positions.masked_fill(~forward.real, 0)
    return positions.max(dim=1, keepdim=True).values + 1


def _warn_full(name: str, positions: Tensor, reach: int) -> None:
    """Say that windows which fill the whole range leave nothing to draw."""
    if positions.shape[1] >= reach:
        warnings.warn(
            f"{name}: training windows of {positions.shape[1]} tokens fill the {reach} positions that are drawn from, so "
            f"they stay the true ones; train on shorter windows, or apply {name} with a larger length=",
            stacklevel=3,
        )
