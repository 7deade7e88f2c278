"""Attention with an additive bias made a block of queries at a time, so that the whole of it never exists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from pospatch.attention._mask import additive
from pospatch.attention.blockwise import BLOCK_SCORES, repeat_kv

__all__ = ["biased", "is_large"]


def is_large(query: Tensor, keys: int) -> bool:
    """True where the bias of a whole call would take more memory than a block may."""
    batch, heads, length, _ = query.shape
    return batch * heads * length * keys > BLOCK_SCORES


def biased(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    causal: bool,
    bias: Callable[[slice, slice], Tensor],
    *,
    scaling: float,
    dropout: float = 0.0,
) -> Tensor:
    """Attention (batch, query, heads, d) of q (batch, heads, query, head_dim) on k and v (batch, kv_heads, key, ...).

    Args:
        mask: what the backend made of the call's mask.
        causal: no mask and a causal module; keys after a block are then left out, which halves the work.
        bias: offsets in nats (batch or 1, heads, rows, columns) of the queries `rows` against the keys `columns`.
            In training each block is computed again in the backward pass rather than kept.
    """
    batch, heads, length, _ = query.shape
    keys = key.shape[2]
    key, value = repeat_kv(key, heads), repeat_kv(value, heads)
    size = max(1, BLOCK_SCORES // (batch * heads * keys))

    def block(rows: slice) -> Tensor:
        columns = slice(0, min(rows.stop, keys) if causal else keys)
        offsets = bias(rows, columns).to(query.dtype)
        bar = additive(mask, causal, rows, query, keys)
        if bar is not None:
            floor = torch.finfo(query.dtype).min / 2  # a row of minus infinities is NaN, and spreads from pads
            offsets = offsets + bar[..., columns].clamp(min=floor).to(query.dtype)
        return scaled_dot_product_attention(
            query[:, :, rows],
            key[:, :, columns],
            value[:, :, columns],
            attn_mask=offsets,
            dropout_p=dropout,
            scale=scaling,
        )

    blocks = [slice(start, min(start + size, length)) for start in range(0, length, size)]
    if torch.is_grad_enabled():
        outputs = [checkpoint(block, rows, use_reentrant=False) for rows in blocks]
    else:
        outputs = [block(rows) for rows in blocks]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()
