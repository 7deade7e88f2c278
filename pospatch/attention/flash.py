"""Banded attention from an ordinary flash kernel: each band is plain attention over slices, merged by its log-sum-exp.

A range of distances [a, b) over n tokens is attention of q[a:] on k[:n - a] within a window of b - a. A window is two calls over
blocks of its own size: the causal triangle inside each block, and the opposite triangle on the block before it, which is causal
again when both are read backwards. Backward calls the kernel's own backward for each piece with the merged output and
log-sum-exp, which is exact: they are all that a flash backward knows of the other keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pospatch.methods._base import Band

__all__ = ["Piece", "banded_flash", "pieces"]

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Part:
    """Rows low to high of `count` blocks of `size` tokens from token `offset` on, read backwards where `reverse`."""

    offset: int
    count: int
    size: int
    low: int
    high: int
    reverse: bool = False

    def view(self, x: Tensor) -> Tensor:
        """(batch, count, heads, rows, ...) of x (batch, heads, length, ...), sharing its memory."""
        blocks = x[:, :, self.offset : self.offset + self.count * self.size].unflatten(2, (self.count, self.size))
        return blocks[:, :, :, self.low : self.high].transpose(1, 2)

    def take(self, x: Tensor) -> Tensor:
        """The same as (batch * count, heads, rows, ...), in reading order."""
        part = self.view(x).flatten(0, 1)
        return part.flip(2) if self.reverse else part

    def shaped(self, value: Tensor, batch: int) -> Tensor:
        """What `take` gave, back in the order of `view`."""
        value = value.flip(2) if self.reverse else value
        return value.unflatten(0, (batch, self.count))


@dataclass(frozen=True)
class Piece:
    """One call of the kernel: queries, keys, whether a triangle lies between them, and the band it belongs to."""

    band: int
    query: Part
    key: Part
    causal: bool


def pieces(bands: Sequence[Band], length: int) -> list[Piece] | None:
    """The calls that make up the bands over `length` consecutive tokens; None where a band has no such form."""
    found: list[Piece] = []
    for index, band in enumerate(bands):
        if band.start * band.unit >= length:
            continue
        made = _distances(index, band, length) if band.unit == 1 else _chunks(index, band, length)
        if made is None:
            return None
        found += made
    return found


def _distances(index: int, band: Band, length: int) -> list[Piece]:
    start, rest = band.start, length - band.start
    if band.stop is None or band.stop - start >= rest:
        return [Piece(index, _slice(start, length), _slice(0, rest), True)]
    size = band.stop - start
    count = -(-rest // size)
    diagonal = Piece(index, Part(start, count, size, 0, size), Part(0, count, size, 0, size), True)
    if count == 1 or size == 1:
        return [diagonal]
    before = Part(start + size, count - 1, size, 0, size - 1, True), Part(0, count - 1, size, 1, size, True)
    return [diagonal, Piece(index, *before, True)]


def _chunks(index: int, band: Band, length: int) -> list[Piece] | None:
    unit, back = band.unit, band.start
    full, rest = divmod(length, unit)
    if band.stop is None:
        later = range(back, full + bool(rest))
        return [
            Piece(index, _slice(b * unit, min((b + 1) * unit, length)), _slice(0, (b - back + 1) * unit), False)
            for b in later
        ]
    if band.stop != back + 1:
        return None
    found = []
    if full > back:
        query, key = Part(back * unit, full - back, unit, 0, unit), Part(0, full - back, unit, 0, unit)
        found.append(Piece(index, query, key, back == 0))
    if rest and full >= back:  # a call of its own: filled up to a whole chunk it would cost as much as one
        before = (full - back) * unit
        found.append(Piece(index, _slice(full * unit, length), _slice(before, min(before + unit, length)), back == 0))
    return found


def _slice(start: int, stop: int) -> Part:
    return Part(start, 1, stop - start, 0, stop - start)


def banded_flash(
    turned: Sequence[tuple[Tensor, Tensor]], value: Tensor, scalings: Sequence[float], plan: list[Piece]
) -> Tensor:
    """Attention over the pieces of `plan`.

    Args:
        turned: q and k of each band, rotated for it, (batch, heads or kv_heads, length, head_dim).
        value: (batch, kv_heads, length, head_dim); keys and values are not repeated, the kernel reads them by groups.
        scalings: factor on q.k, one a band.

    Returns:
        (batch, heads, length, head_dim).
    """
    flat = [x for pair in turned for x in pair]
    return _Banded.apply(plan, list(scalings), value, *flat)


class _Banded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: list[Piece], scalings: list[float], value: Tensor, *flat: Tensor) -> Tensor:
        length = value.shape[2]
        room = max(max(p.offset + p.count * p.size for p in (piece.query, piece.key)) for piece in plan) - length
        padded = [_pad(x, room) for x in (value, *flat)]
        value_p, *flat_p = padded
        size = (*flat[0].shape[:2], length + max(room, 0))
        total = value.new_full(size, float("-inf"), dtype=torch.float32)
        merged = value.new_zeros((*size, value.shape[-1]), dtype=torch.float32)
        for piece in plan:
            q, k, v = (
                piece.query.take(flat_p[2 * piece.band]),
                piece.key.take(flat_p[2 * piece.band + 1]),
                piece.key.take(value_p),
            )
            out, lse = _forward(q, k, v, 0.0, piece.causal, scale=scalings[piece.band])
            _merge(piece.query, merged, total, out, lse)
        ctx.plan, ctx.scalings, ctx.room = plan, scalings, max(room, 0)
        ctx.save_for_backward(value, merged, total, *flat)
        return merged[:, :, :length].to(value.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        value, merged, total, *flat = ctx.saved_tensors
        length = value.shape[2]
        value_p, grad_p, *flat_p = (_pad(x, ctx.room) for x in (value, grads[0].contiguous(), *flat))
        collected = [torch.zeros_like(x, dtype=torch.float32) for x in (value_p, *flat_p)]
        merged = merged.to(value.dtype)
        for piece in ctx.plan:
            at = 2 * piece.band
            q, k, v = piece.query.take(flat_p[at]), piece.key.take(flat_p[at + 1]), piece.key.take(value_p)
            out, grad, lse = (piece.query.take(x).contiguous() for x in (merged, grad_p, total))
            parts = _backward(grad, q, k, v, out, lse, 0.0, piece.causal, scale=ctx.scalings[piece.band])
            for target, part, found in zip(
                (collected[at + 1], collected[at + 2], collected[0]),
                (piece.query, piece.key, piece.key),
                parts,
                strict=True,
            ):
                part.view(target).add_(part.shaped(found, value.shape[0]))
        return (None, None, *(x[:, :, :length].to(value.dtype) for x in collected))


def _pad(x: Tensor, room: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, 0, 0, room)) if room > 0 else x


def _merge(part: Part, merged: Tensor, total: Tensor, out: Tensor, lse: Tensor) -> None:
    """Add one piece to the running softmax: weights are e to the log-sum-exp."""
    batch = merged.shape[0]
    out, lse = part.shaped(out, batch), part.shaped(lse.float(), batch)
    into, sums = part.view(merged), part.view(total)
    new = torch.logaddexp(sums, lse)
    into.mul_(torch.exp(sums - new)[..., None]).add_(out.float() * torch.exp(lse - new)[..., None])
    sums.copy_(new)
