"""Offsets in nats added to the logits by the host's own attention function, whichever backend it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["added", "plain"]


def plain(base: str, kwargs: dict[str, Any]) -> bool:
    """True where attention is a softmax of q.k and nothing else: a softcap would squash a bias that is in q.k, a sink is no
    key and so not free of what is constant in a row, and the host's own bias is a mask anyway."""
    return base == "sdpa" and all(kwargs.get(name) is None for name in ("softcap", "s_aux", "position_bias"))


def added(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    offsets: Tensor,
    function: Callable[..., Any],
    base: str,
    kwargs: dict[str, Any],
) -> Any:
    """The host's function on this call with `offsets` (batch or 1, heads, query, key) beside its mask."""
    offsets = offsets.to(query.dtype)
    if base == "eager":
        return function(module, query, key, value, _joined(offsets, mask, key.shape[2]), **kwargs)
    if base == "flex_attention":  # it reads the bias of each element of the batch
        offsets = offsets.expand(query.shape[0], -1, -1, -1)
    return function(module, query, key, value, mask, position_bias=offsets, **kwargs)


def _joined(offsets: Tensor, mask: Any, keys: int) -> Tensor:
    """One additive mask for an eager function, which adds whatever it is given, a caller's booleans too."""
    if mask is None:
        return offsets
    if mask.dtype == torch.bool:
        return offsets.masked_fill(~mask[..., :keys], torch.finfo(offsets.dtype).min)
    return mask[..., :keys] + offsets
