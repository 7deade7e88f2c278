"""Attention whose logits are computed by a function, a block of queries at a time, and again in the backward pass: memory
heads * block * keys, exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pospatch.attention._mask import additive, row_blocks

__all__ = ["blockwise", "by_blocks", "is_large", "repeat_kv", "softmax"]

BLOCK_SCORES = 2**24  # logits held at once: 64 MB of float32
KEPT_SCORES = 2**20  # logits whose graph is kept whole rather than made again in the backward pass


def is_large(query: Tensor, keys: int) -> bool:
    """True where the bias of a whole call would take more memory than a block may."""
    batch, heads, length, _ = query.shape
    return batch * heads * length * keys > BLOCK_SCORES


def repeat_kv(x: Tensor, heads: int) -> Tensor:
    """Keys or values (batch, kv_heads, key, d) seen by each query head."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def blockwise(
    query: Tensor,
    value: Tensor,
    mask: Any,
    causal: bool,
    logits: Callable[[slice, Tensor | None], Tensor],
    *,
    dropout: float = 0.0,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    need_weights: bool = False,
    visible: Callable[[slice], Tensor | None] | None = None,
    kept: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Softmax over `logits(rows, mask)`, applied to value.

    Args:
        query: (batch, heads, query, head_dim), for shapes only.
        value: (batch, heads, key, d).
        logits: returns float32 (batch, heads, rows, key) in nats for the queries `rows`; the mask is added afterwards.
        softcap: logits become softcap * tanh(logits / softcap), before the mask.
        sinks: (heads,) logits of a sink that takes weight and gives nothing.
        need_weights: also return the weights (batch, heads, query, key).
        visible: which keys the queries `rows` see at all, bool (batch, rows, key), or None where all; beside the mask.
        kept: logits whose graph is kept rather than made again in the backward pass; None is `KEPT_SCORES`.

    Returns:
        (batch, query, heads, d), and the weights or None.
    """

    def block(rows: slice) -> Tensor:
        bar = additive(mask, causal, rows, query, value.shape[2])
        scores = logits(rows, bar)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if visible is not None and (seen := visible(rows)) is not None:  # after the softcap, which would undo it
            scores = scores.masked_fill(~seen[:, None], float("-inf"))
        weights = softmax(scores if bar is None else scores + bar, sinks)
        weights = torch.nn.functional.dropout(weights.to(value.dtype), p=dropout, training=dropout > 0)
        return weights if need_weights else torch.matmul(weights, value)

    whole = by_blocks(block, query, value.shape[2], keep=need_weights, kept=kept)
    output = torch.matmul(whole, value) if need_weights else whole  # weights that are returned are those that act
    return output.transpose(1, 2).contiguous(), whole if need_weights else None


def by_blocks(
    block: Callable[[slice], Tensor],
    query: Tensor,
    keys: int,
    *,
    planes: int = 1,
    keep: bool = False,
    kept: int | None = None,
) -> Tensor:
    """What `block` makes of each slice of the queries, joined along them.

    Args:
        query: (batch, heads, query, head_dim), for shapes only.
        planes: matrices of (rows, keys) that a block holds at once, for each of the heads.
        keep: the blocks are the matrices themselves, so that nothing is gained by making them again in the backward pass.
        kept: as of `blockwise`.
    """
    batch, heads, length, _ = query.shape
    blocks = row_blocks(length, BLOCK_SCORES // max(1, batch * heads * keys * planes))
    kept = KEPT_SCORES if kept is None else kept
    again = torch.is_grad_enabled() and batch * heads * length * keys > kept and not keep
    if again:  # the query goes along so that the state of its device's random numbers is kept for dropout
        parts = [checkpoint(lambda rows, _: block(rows), rows, query, use_reentrant=False) for rows in blocks]
    else:
        parts = [block(rows) for rows in blocks]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax in float32; a row that may see nothing gives zeros rather than NaN."""
    if sinks is not None:
        column = sinks.float().reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        return torch.cat((scores, column), dim=-1).softmax(dim=-1)[..., :-1]
    blocked = (scores == float("-inf")).all(dim=-1, keepdim=True)
    return scores.masked_fill(blocked, 0.0).softmax(dim=-1).masked_fill(blocked, 0.0)
