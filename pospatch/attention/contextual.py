"""Attention whose logits depend on content: made a block of queries at a time, and made again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pospatch.attention._mask import additive
from pospatch.attention._parts import split
from pospatch.attention.blockwise import by_blocks, repeat_kv, softmax

__all__ = ["contextual", "folded_columns", "running_sums", "turned"]

Logits = Callable[[slice, slice, Tensor, Tensor], Tensor]
UNIT = 256.0  # what a query's column holds: keeps the columns of keys inside float16


def contextual(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    causal: bool,
    logits: Logits,
    *,
    scaling: float,
    planes: int = 1,
    dropout: float = 0.0,
    softcap: float | None = None,
    cap_first: bool = False,
    sinks: Tensor | None = None,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Softmax over `logits(rows, columns, scores, allowed)`, applied to value.

    Args:
        query: (batch, heads, query, head_dim).
        key, value: (batch, heads, key, ...), repeated to the query heads.
        mask: what the backend made of the call's mask.
        causal: no mask and a causal module; keys after a block are then left out, which halves the work.
        logits: returns float32 (batch, heads, rows, columns) in nats, from the scaled q.k of these rows and columns and
            which of the pairs are allowed, bool (batch or 1, 1, rows or 1, columns); the mask is added afterwards.
        scaling: the factor on q.k.
        planes: matrices of (rows, columns) that `logits` holds at once, for each of the heads.
        softcap: logits become softcap * tanh(logits / softcap), before the mask.
        cap_first: the softcap acts on the scores that `logits` is given, and not on what it returns.
        sinks: (heads,) logits of a sink that takes weight and gives nothing.
        need_weights: also return the weights (batch, heads, query, key); only where not causal.

    Returns:
        (batch, query, heads, d), and the weights or None.
    """
    keys = key.shape[2]

    def block(rows: slice) -> Tensor:
        columns = slice(0, min(rows.stop, keys) if causal else keys)
        scores = torch.matmul(query[:, :, rows], key[:, :, columns].transpose(2, 3)).float() * scaling
        bar = additive(mask, causal, rows, query, keys)
        if bar is None:
            allowed = torch.ones((1, 1, *scores.shape[2:]), dtype=torch.bool, device=query.device)
        else:
            bar = bar[..., columns]
            allowed = (bar > -1e4)[:, :1]
        if softcap is not None and cap_first:
            scores = softcap * torch.tanh(scores / softcap)
        scores = logits(rows, columns, scores, allowed)
        if softcap is not None and not cap_first:
            scores = softcap * torch.tanh(scores / softcap)
        weights = softmax(scores if bar is None else scores + bar, sinks)
        weights = torch.nn.functional.dropout(weights.to(value.dtype), p=dropout, training=dropout > 0)
        return weights if need_weights else torch.matmul(weights, value[:, :, columns])

    whole = by_blocks(block, query, keys, planes=planes, keep=need_weights)
    output = torch.matmul(whole, value) if need_weights else whole  # weights that are returned are those that act
    return output.transpose(1, 2).contiguous(), whole if need_weights else None


def running_sums(state: Tensor, seen: Tensor | None) -> Tensor:
    """Sums of a per-token state (batch, heads, key, c) over the keys up to each one, in float64 where the device has it.

    `seen` is bool (batch or 1, key): a token that no query sees, a pad, adds nothing.
    """
    if seen is not None:
        state = state.masked_fill(~seen[:, None, :, None], 0.0)
    return state.to(torch.float32 if state.device.type == "mps" else torch.float64).cumsum(dim=2)


def folded_columns(bias: Tensor, kv_heads: int, scaling: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A bias that each key has for every query, as columns of q and k whose scaled dot product it is.

    Args:
        bias: (batch, heads, key) in nats, float32.

    Returns:
        Columns of q (1, heads, 1, c) in nats and of k (batch, kv_heads, key, c) of `dtype`; heads that share keys pick
        theirs out of the columns by zeros and ones, and narrow types get several columns that sum to the float32 value.
    """
    batch, heads, keys = bias.shape
    group = heads // kv_heads
    parts = split(bias / (scaling * UNIT), dtype)
    width = parts.shape[-1]
    k_columns = parts.reshape(batch, kv_heads, group, keys, width).permute(0, 1, 3, 2, 4).flatten(3)
    own = torch.eye(group, device=bias.device).repeat_interleave(width, dim=1) * (UNIT * scaling)
    return own.repeat(kv_heads, 1)[None, :, None], k_columns


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate all of x (batch, heads, length, head_dim), half-split pairs, by angles (batch, kv_heads, length, half)."""
    half = angles.shape[-1]
    angles = repeat_kv(angles.remainder(2 * torch.pi).float(), x.shape[1])
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
