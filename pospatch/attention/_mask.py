"""What a call's mask allows, whatever form the backend gave it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["additive", "is_causal_call", "looks_back"]


def is_causal_call(mask: Any, query: int, module: Any, is_causal: bool | None) -> bool:
    """sdpa's rule: no mask, several queries and a causal module mean the causal triangle, aligned upper left."""
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    return mask is None and query > 1 and bool(causal)


def looks_back(mask: Any, causal: bool, query_positions: Tensor, key_positions: Tensor) -> bool:
    """True where no query of the call sees a key that stands after it; False too where that is not known.

    A caller's mask may let a causal model see ahead (a prefix, an image), and positions may start again within a row.
    """
    if mask is None:
        if not causal or torch.compiler.is_compiling():  # a graph cannot look at positions; they count up there
            return causal
        keys = key_positions[:, : query_positions.shape[1]]
        return bool((keys[:, 1:] >= keys[:, :-1]).all())
    if torch.compiler.is_compiling() or not torch.is_tensor(mask):
        return False
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    ahead = key_positions[:, None, None, :] > query_positions[:, None, :, None]
    return not bool((seen[..., : key_positions.shape[1]] & ahead).any())


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
