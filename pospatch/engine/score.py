"""The score site: one call of attention with what the patch puts into q, k and the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pospatch.attention._mask import columns, is_causal_call, looks_back, triangle
from pospatch.attention.biased import biased
from pospatch.attention.blockwise import blockwise, is_large, repeat_kv
from pospatch.attention.fold import folded
from pospatch.attention.toeplitz import takes_kernel, toeplitz
from pospatch.engine import _banded, _contextual
from pospatch.engine._offsets import added, plain
from pospatch.methods._base import Bands, Bias, Contextual, Fold

if TYPE_CHECKING:
    from pospatch.engine._state import Call, State

__all__ = ["attend", "open_attention"]

FAR, FAR_IN_HALF = 4096, 8192  # keys from which steep heads that look no farther than they must beat columns of q and k

Function = Callable[..., Any]


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    call: Call,
    function: Function,
    base: str,
    kwargs: dict[str, Any],
) -> Any:
    """Attention of one call: rotate and scale q and k, then the method's logits, then the host's own function where it can."""
    state = call.state
    kwargs = dict(kwargs)
    if state.drop_bias:
        kwargs.pop("position_bias", None)
    key, key_state = _contextual.key_state(query, key, call)
    if state.norm is not None:
        weights = state.weights_of("norm")
        query, key = state.norm.normed(query, "query", weights), state.norm.normed(key, "key", weights)
    if state.temperature is not None:
        factor = state.temperature.factor_at(call.true, state.geometry)
        query = query * factor[:, None, :, None].to(query.dtype)
    query, key = _rotated(query, key, call)
    method = state.score
    if method is None:
        return function(module, query, key, value, mask, **kwargs)
    if isinstance(method, Contextual):
        return _contextual.attend(module, query, key, value, mask, call, key_state, function, base, kwargs)
    if isinstance(method, Bands):
        return _own(module, query, key, value, mask, call, base, kwargs)
    fold = method if isinstance(method, Fold) else None
    if fold is not None and not _may_fold(module, fold, query, key, mask, call, base, kwargs):
        fold = None
    if fold is None or key.shape[2] >= (FAR if query.dtype.itemsize > 2 else FAR_IN_HALF):
        output = _by_distance(module, query, key, value, mask, call, base, kwargs)
        if output is not None:
            return output, None
    if fold is not None:
        columns = fold.columns(
            call.positions, call.key_positions(key.shape[2]), state.weights_of("score"), call.geometry
        )
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        kwargs["scaling"] = scaling
        q, k, v = folded(query, key, value, columns, scaling)
        output, weights = function(module, q, k, v, mask, **kwargs)
        return output[..., : value.shape[-1]].contiguous(), weights  # some hosts take a view of it
    return _biased(module, query, key, value, mask, call, function, base, kwargs)


def _rotated(query: Tensor, key: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    state = call.state
    if state.rotary is None or isinstance(state.score, Bands):
        return query, key
    if state.early:
        query = call.rotate(query, call.positions, "query")
        if call.keys_done:
            return query, key
        return query, call.rotate(key, call.key_positions(key.shape[2]), "key")
    length = call.positions.max(dim=1, keepdim=True).values + 1
    return (
        state.rotate(query, call.positions, "query", length),
        state.rotate(key, call.key_positions(key.shape[2]), "key", length),
    )


def _may_fold(
    module: Any, method: Fold, query: Tensor, key: Tensor, mask: Any, call: Call, base: str, kwargs: dict[str, Any]
) -> bool:
    """Columns pay for many queries; a single one takes its bias as a row."""
    length = query.shape[2]
    if length == 1 or not plain(base, kwargs) or not method.folds(call.state.geometry, query.dtype):
        return False
    causal = is_causal_call(mask, length, module, kwargs.get("is_causal"))
    return not method.looks_back or looks_back(mask, causal, call.positions, call.key_positions(key.shape[2]))


def _biased(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    call: Call,
    function: Function,
    base: str,
    kwargs: dict[str, Any],
) -> Any:
    state = call.state
    method: Bias = state.score  # type: ignore[assignment]
    weights, key_positions = state.weights_of("score"), call.key_positions(key.shape[2])
    if plain(base, kwargs) and is_large(query, key.shape[2]):
        output = biased(
            query,
            key,
            value,
            mask,
            is_causal_call(mask, query.shape[2], module, kwargs.get("is_causal")),
            lambda rows, columns: method.bias(
                call.positions[:, rows], key_positions[:, columns], weights, call.geometry
            ),
            scaling=kwargs.get("scaling") or query.shape[-1] ** -0.5,
            dropout=kwargs.get("dropout", 0.0),
        )
        return output, None
    bias = method.bias(call.positions, key_positions, weights, call.geometry)
    native = kwargs.pop("position_bias", None)
    bias = bias if native is None else bias.to(query.dtype) + native
    return added(module, query, key, value, mask, bias, function, base, kwargs)


def _by_distance(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    call: Call,
    base: str,
    kwargs: dict[str, Any],
) -> Tensor | None:
    """The output (batch, query, heads, d) where the bias is one of distance alone and the call a plain one, else None."""
    method: Bias = call.state.score  # type: ignore[assignment]
    queries, keys = query.shape[2], key.shape[2]
    if queries == 1 or not plain(base, kwargs) or kwargs.get("dropout") or not takes_kernel(query, key, value):
        return None
    profile = method.profile(call.state.weights_of("score"), call.state.geometry)
    if profile is None:
        return None
    unmasked = is_causal_call(mask, queries, module, kwargs.get("is_causal"))
    causal = triangle(mask, unmasked, call.positions, call.key_positions(keys))
    if causal is None:
        return None
    bias = profile(torch.arange(keys - 1, -queries, -1, device=query.device)).t()
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    return toeplitz(query, key, value, bias, causal, scaling).transpose(1, 2).contiguous()


def _own(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    call: Call,
    base: str,
    kwargs: dict[str, Any],
) -> Any:
    """Logits that no host function can make: computed here a block at a time, with the host's softcap, sinks and dropout."""
    state = call.state
    heads, keys = query.shape[1], key.shape[2]
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    causal = base != "eager" and is_causal_call(mask, query.shape[2], module, kwargs.get("is_causal"))
    method: Bands = state.score  # type: ignore[assignment]
    if call.held is not None:
        mask = columns(mask, query, call.held, call.record.shape[1])  # type: ignore[union-attr]
    if base == "sdpa":
        output = _banded.step(query, key, value, mask, call, scaling, kwargs)
        if output is None:
            output = _banded.flash(query, key, value, mask, call, causal, scaling, kwargs)
        if output is not None:
            return output, None
    key_positions = call.key_positions(keys)
    key, value = repeat_kv(key, heads), repeat_kv(value, heads)
    logits = _banded.band_logits(query, key, call, key_positions, scaling)
    visible = _banded.visible(method, call, key_positions)
    native = kwargs.get("position_bias")
    if native is not None:
        inner = logits
        logits = lambda rows, bar: inner(rows, bar) + native[:, :, rows]  # noqa: E731
    return blockwise(
        query,
        value,
        mask,
        causal,
        logits,
        dropout=kwargs.get("dropout", 0.0),
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
        need_weights=base == "eager",
        visible=visible,
    )


def open_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    function: Function,
    base: str,
    state: State,
    kwargs: dict[str, Any],
) -> Any:
    """Attention of the proof: every token sees every token and nothing positional of ours acts."""
    kwargs = {name: item for name, item in kwargs.items() if not (name == "position_bias" and state.drop_bias)}
    if base == "sdpa":  # the others take no mask for no mask
        kwargs["is_causal"] = False
    return function(module, query, key, value, None, **kwargs)
