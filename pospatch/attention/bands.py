"""Logits of methods that re-index a rotary encoding by ranges of distance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pospatch.methods._base import Band

__all__ = ["banded_logits"]

Rotate = Callable[[Tensor, Tensor], Tensor]


def banded_logits(
    bands: Sequence[Band],
    query: Tensor,
    key: Tensor,
    forms: Sequence[Tensor],
    query_positions: Tensor,
    key_positions: Tensor,
    scaling: float,
    rotate: Rotate,
    two_sided: bool,
) -> Callable[[slice, Tensor | None], Tensor]:
    """A function that gives the logits of a block of queries, which are rotated once a block.

    Args:
        query, key: (batch, heads, query or key, head_dim), not rotated; key is read only where two_sided.
        forms: the keys as each band reads them.
        query_positions, key_positions: (batch or 1, query or key).
    """
    mirrored = [rotate(key, band.query(key_positions)) for band in bands] if two_sided else []

    def logits(rows: slice, bar: Tensor | None) -> Tensor:
        where = query_positions[:, rows]
        scores = None
        for index, band in enumerate(bands):
            distance = where[:, :, None] // band.unit - key_positions[:, None, :] // band.unit
            turned = rotate(query[:, :, rows], band.query(where))
            part = torch.matmul(turned, forms[index].transpose(2, 3)).float()
            if two_sided:
                part = torch.where(
                    (distance < 0)[:, None], _mirror(band, query[:, :, rows], mirrored[index], where, rotate), part
                )
                distance = distance.abs()
            part = part * (scaling * band.amplitude)
            if scores is None:
                scores = part
                continue
            holds = distance >= band.start if band.stop is None else (distance >= band.start) & (distance < band.stop)
            scores = torch.where(holds[:, None], part, scores)
        assert scores is not None  # a Bands method has at least one range
        return scores

    return logits


def _mirror(band: Band, query: Tensor, key: Tensor, where: Tensor, rotate: Rotate) -> Tensor:
    """Keys after their query: with the maps exchanged, the relative position is the negative of the mirrored pair's."""
    return torch.matmul(rotate(query, band.key(where)), key.transpose(2, 3)).float()
