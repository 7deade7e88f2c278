"""What methods that draw positions in training share."""

from __future__ import annotations

import warnings

from torch import Tensor

from pospatch.methods._base import Forward

__all__ = ["tokens_of", "warn_full"]


def tokens_of(positions: Tensor, forward: Forward) -> Tensor:
    """Tokens of each row, (batch, 1), at least 1: one more than the largest position of what is no pad."""
    if forward.real is not None:
        positions = positions.masked_fill(~forward.real, 0)
    return positions.max(dim=1, keepdim=True).values + 1


def warn_full(name: str, positions: Tensor, reach: int) -> None:
    """Say that windows which fill the whole range leave nothing to draw."""
    if positions.shape[1] >= reach:
        warnings.warn(
            f"{name}: training windows of {positions.shape[1]} tokens fill the {reach} positions that are drawn from, so "
            f"they stay the true ones; train on shorter windows, or apply {name} with a larger length=",
            stacklevel=2,
        )
