"""What a call's mask allows, whatever form the backend gave it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["additive", "is_causal_call"]


def is_causal_call(mask: Any, query: int, module: Any, is_causal: bool | None) -> bool:
    """sdpa's rule: no mask, several queries and a causal module mean the causal triangle, aligned upper left."""
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    return mask is None and query > 1 and bool(causal)


def additive(mask: Any, causal: bool, rows: slice, query: Tensor, keys: int) -> Tensor | None:
    """The mask of the queries `rows` against all keys as float32 to add, (batch or 1, heads or 1, rows, keys), or None."""
    device = query.device
    if mask is None:
        if not causal:
            return None
        index = torch.arange(rows.start, rows.stop, device=device)
        allowed = index[:, None] >= torch.arange(keys, device=device)[None]
        return _fill(allowed[None, None])
    if not torch.is_tensor(mask):
        mask = _dense(mask, query.shape[2], keys, device)
    block = mask[..., rows if mask.shape[-2] > 1 else slice(None), :keys]
    return _fill(block) if block.dtype == torch.bool else block.float()


def _fill(allowed: Tensor) -> Tensor:
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, float("-inf"))


def _dense(mask: Any, queries: int, keys: int, device: torch.device) -> Tensor:
    """A flex BlockMask written out as booleans."""
    from torch.nn.attention.flex_attention import create_mask

    batch, heads = mask.shape[0], mask.shape[1]
    return create_mask(mask.mask_mod, batch, heads, queries, keys, device=str(device))
