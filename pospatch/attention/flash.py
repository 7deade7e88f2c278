"""Banded attention from an ordinary flash kernel: each band is plain attention over slices, merged by its log-sum-exp.

The queries are the last of the tokens; where they are all of them, a range of distances [a, b) is attention of q[a:] on
k[:n - a] within a window of b - a. A window is, over blocks of its own size, the causal triangle inside each block and the
opposite triangle on the keys before it, which is causal again when both are read backwards; a block that is shorter than its
window sees the keys between the two whole. Keys after their query, in two-sided attention, are the same read from the other end,
with what rotates q and k exchanged. Backward calls the kernel's own backward for each piece with the merged output and
log-sum-exp, which is exact: they are all that a flash backward knows of the other keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pospatch.methods._base import Band

__all__ = ["Piece", "banded_flash", "both_ways", "pieces", "reach"]

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

    @property
    def end(self) -> int:
        """The token after the last block, which may be past the last one there is."""
        return self.offset + self.count * self.size

    def moved(self, tokens: int) -> Part:
        """The same part where so many tokens more stand before it."""
        return replace(self, offset=self.offset + tokens)

    def mirrored(self, length: int) -> Part:
        """The part that lies as far from the other end of `length` tokens, its rows in the opposite order, and its blocks too."""
        low, high = self.size - self.high, self.size - self.low
        return Part(length - self.end, self.count, self.size, low, high, not self.reverse)

    def view(self, x: Tensor) -> Tensor:
        """(batch, count, heads, rows, ...) of x (batch, heads, length, ...), sharing its memory."""
        blocks = x[:, :, self.offset : self.end].unflatten(2, (self.count, self.size))
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


def pieces(bands: Sequence[Band], queries: int, keys: int) -> list[Piece] | None:
    """The calls that make up the bands of the last `queries` of `keys` consecutive tokens; None where a band has no such form."""
    found: list[Piece] = []
    for index, band in enumerate(bands):
        if band.start * band.unit >= keys or (band.stop is not None and band.stop <= band.start):
            continue
        made = (_distances if band.unit == 1 else _chunks)(index, band, queries, keys)
        if made is None:
            return None
        found += made
    return found


def both_ways(bands: Sequence[Band], length: int) -> tuple[list[Piece], int] | None:
    """The calls that make up the bands of `length` tokens which all see each other, and how many tokens they count before the
    first one; None where a band has no such form.

    Pieces of keys after their query are numbered on from the bands: there q is turned by the band's map of keys, k by its map of
    queries.
    """
    if any(band.unit > 1 for band in bands):  # whose blocks begin elsewhere when they are counted from the end
        return None
    forth, back = (
        pieces([replace(band, start=max(least, band.start)) for band in bands], length, length) or []
        for least in (0, 1)
    )
    front = max((part.end for piece in back for part in (piece.query, piece.key)), default=length) - length
    whole = length + front
    plan = [replace(piece, query=piece.query.moved(front), key=piece.key.moved(front)) for piece in forth]
    for piece in back:
        query, key = piece.query.mirrored(whole), piece.key.mirrored(whole)
        plan.append(Piece(piece.band + len(bands), query, key, piece.causal))
    return plan, front


def reach(plan: list[Piece], band: int) -> slice:
    """The keys from the first to the last that a band reads; empty where it reads none."""
    parts = [piece.key for piece in plan if piece.band == band]
    return slice(min((part.offset for part in parts), default=0), max((part.end for part in parts), default=0))


def _distances(index: int, band: Band, queries: int, keys: int) -> list[Piece]:
    """Row j of those that see any key sees the `width` keys up to `last` + j."""
    first = max(0, band.start - (keys - queries))
    rows = queries - first
    last = keys - rows - band.start
    width = keys if band.stop is None else min(band.stop - band.start, keys)
    size = min(width, rows)
    count = -(-rows // size)
    found = [Piece(index, Part(first, count, size, 0, size), Part(last, count, size, 0, size), True)]
    whole = max(0, last + size - width)
    if whole < last:  # a single block, shorter than its window
        found.append(Piece(index, _slice(first, queries), _slice(whole, last), False))
    return found + _opposite(index, first, last - width + 1, count, size)


def _opposite(index: int, first: int, begin: int, count: int, size: int) -> list[Piece]:
    """Row j of each block sees the keys from `begin` + j to `begin` + size - 2, counted on from block to block; keys before the
    first token are not there."""
    found = []
    if begin < 0:
        there = begin + size - 1
        if there > 0:
            query, key = Part(first, 1, size, 0, size - 1, True), Part(0, 1, there, 0, there, True)
            found.append(Piece(index, query, key, True))
        first, begin, count = first + size, begin + size, count - 1
    if count and size > 1:
        query, key = Part(first, count, size, 0, size - 1, True), Part(begin, count, size, 0, size - 1, True)
        found.append(Piece(index, query, key, True))
    return found


def _chunks(index: int, band: Band, queries: int, keys: int) -> list[Piece] | None:
    unit, back, before = band.unit, band.start, keys - queries
    if band.stop is None:
        if not back:  # the chunk of a query itself has a triangle
            return None
        blocks = range(max(back, before // unit), -(-keys // unit))
        rows = [(_rows(block, unit, before, keys), (block - back + 1) * unit) for block in blocks]
        return [Piece(index, query, _slice(0, stop), False) for query, stop in rows]
    if band.stop != back + 1:
        return None
    found, full = [], range(max(back, -(-before // unit)), keys // unit)
    if full:
        query = Part(full.start * unit - before, len(full), unit, 0, unit)
        found.append(Piece(index, query, Part((full.start - back) * unit, len(full), unit, 0, unit), back == 0))
    # calls of their own: filled up to a whole chunk they would cost as much as one
    for block in sorted({edge // unit for edge in (before, keys) if edge % unit}):
        query, start = _rows(block, unit, before, keys), (block - back) * unit
        if back and block >= back:
            found.append(Piece(index, query, _slice(start, start + unit), False))
        elif not back:
            inside = query.offset + before
            if start < inside:
                found.append(Piece(index, query, _slice(start, inside), False))
            found.append(Piece(index, query, _slice(inside, inside + query.size), True))
    return found


def _rows(block: int, unit: int, before: int, keys: int) -> Part:
    """The queries of a chunk, `before` of whose tokens are no queries."""
    return _slice(max(block * unit, before) - before, min((block + 1) * unit, keys) - before)


def _slice(start: int, stop: int) -> Part:
    return Part(start, 1, stop - start, 0, stop - start)


def banded_flash(
    turned: Sequence[tuple[Tensor, Tensor]], value: Tensor, scalings: Sequence[float], plan: list[Piece]
) -> Tensor:
    """Attention over the pieces of `plan`.

    Args:
        turned: of each band q (batch, heads, query, head_dim) and k (batch, kv_heads, its reach, head_dim), rotated for it.
        value: (batch, kv_heads, key, head_dim); keys and values are not repeated, the kernel reads them by groups.
        scalings: factor on q.k, one a band.

    Returns:
        (batch, heads, query, head_dim).
    """
    flat = [x for pair in turned for x in pair]
    # keys of a band are counted from the first that it reads
    held = [replace(piece.key, offset=piece.key.offset - reach(plan, piece.band).start) for piece in plan]
    return _Banded.apply(plan, held, list(scalings), value, *flat)


class _Banded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: list[Piece], held: list[Part], scalings: list[float], value: Tensor, *flat: Tensor
    ) -> Tensor:
        padded = _padded(plan, held, value, flat)
        value_p, *flat_p = padded
        query = flat_p[0]
        total = query.new_full(query.shape[:3], float("-inf"), dtype=torch.float32)
        merged = query.new_zeros((*query.shape[:3], value.shape[-1]), dtype=torch.float32)
        for piece, part in zip(plan, held, strict=True):
            q, k, v = (
                piece.query.take(flat_p[2 * piece.band]),
                part.take(flat_p[2 * piece.band + 1]),
                piece.key.take(value_p),
            )
            out, lse = _forward(q, k, v, 0.0, piece.causal, scale=scalings[piece.band])
            _merge(piece.query, merged, total, out, lse)
        ctx.plan, ctx.held, ctx.scalings = plan, held, scalings
        ctx.save_for_backward(value, merged, total, *flat)
        return merged[:, :, : flat[0].shape[2]].to(value.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        value, merged, total, *flat = ctx.saved_tensors
        value_p, *flat_p = _padded(ctx.plan, ctx.held, value, flat)
        grad_p = _pad(grads[0].contiguous(), flat_p[0].shape[2])
        collected = [torch.zeros_like(x, dtype=torch.float32) for x in (value_p, *flat_p)]
        merged = merged.to(value.dtype)
        for piece, part in zip(ctx.plan, ctx.held, strict=True):
            at = 2 * piece.band
            q, k, v = piece.query.take(flat_p[at]), part.take(flat_p[at + 1]), piece.key.take(value_p)
            out, grad, lse = (piece.query.take(x).contiguous() for x in (merged, grad_p, total))
            parts = _backward(grad, q, k, v, out, lse, 0.0, piece.causal, scale=ctx.scalings[piece.band])
            for target, where, found in zip(
                (collected[at + 1], collected[at + 2], collected[0]),
                (piece.query, part, piece.key),
                parts,
                strict=True,
            ):
                where.view(target).add_(where.shaped(found, value.shape[0]))
        cut = [x[:, :, : given.shape[2]].to(value.dtype) for x, given in zip(collected, (value, *flat), strict=True)]
        return (None, None, None, *cut)


def _padded(plan: list[Piece], held: list[Part], value: Tensor, flat: Sequence[Tensor]) -> list[Tensor]:
    """Values, queries and keys with room for whole blocks at their end; all queries get the same."""
    query = max(flat[0].shape[2], *(piece.query.end for piece in plan))
    found = [_pad(value, max(piece.key.end for piece in plan))]
    for index, x in enumerate(flat):
        ends = [part.end for piece, part in zip(plan, held, strict=True) if piece.band == index // 2]
        found.append(_pad(x, max(ends, default=0) if index % 2 else query))
    return found


def _pad(x: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, 0, 0, length - x.shape[2])) if length > x.shape[2] else x


def _merge(part: Part, merged: Tensor, total: Tensor, out: Tensor, lse: Tensor) -> None:
    """Add one piece to the running softmax: weights are e to the log-sum-exp."""
    batch = merged.shape[0]
    out, lse = part.shaped(out, batch), part.shaped(lse.float(), batch)
    into, sums = part.view(merged), part.view(total)
    new = torch.logaddexp(sums, lse)
    into.mul_(torch.exp(sums - new)[..., None]).add_(out.float() * torch.exp(lse - new)[..., None])
    sums.copy_(new)
