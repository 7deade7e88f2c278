"""Attention with an additive bias made a block of queries at a time, so that the whole of it never exists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pospatch.attention._mask import additive
from pospatch.attention.blockwise import by_blocks, repeat_kv

__all__ = ["biased"]


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
    keys, heads = key.shape[2], query.shape[1]
    key, value = repeat_kv(key, heads), repeat_kv(value, heads)

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

    return by_blocks(block, query, keys).transpose(1, 2).contiguous()
