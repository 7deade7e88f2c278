"""The score site: one call of attention with what the patch puts into q, k and the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pospatch.attention._mask import is_causal_call
from pospatch.attention.biased import biased, is_large
from pospatch.attention.blockwise import blockwise, repeat_kv
from pospatch.attention.fold import folded
from pospatch.engine import _banded
from pospatch.engine._cache import unpack_state
from pospatch.methods._base import Bands, Bias, Block, Contextual, Fold

if TYPE_CHECKING:
    from pospatch.engine._state import Call, State

__all__ = ["attend", "open_attention"]

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
    key, key_state = _key_state(query, key, call)
    if state.temperature is not None:
        factor = state.temperature.factor_at(call.positions, state.geometry)
        query = query * factor[:, None, :, None].to(query.dtype)
    query, key = _rotated(query, key, call)
    method = state.score
    if method is None:
        return function(module, query, key, value, mask, **kwargs)
    if isinstance(method, Bands | Contextual):
        return _own(module, query, key, value, mask, call, key_state, base, kwargs)
    if isinstance(method, Fold) and _may_fold(method, query, call, base, kwargs):
        columns = method.columns(
            call.positions, call.key_positions(key.shape[2]), state.weights_of("score"), state.geometry
        )
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        kwargs["scaling"] = scaling
        q, k, v = folded(query, key, value, columns, scaling)
        output, weights = function(module, q, k, v, mask, **kwargs)
        return output[..., : value.shape[-1]].contiguous(), weights  # some hosts take a view of it
    return _biased(module, query, key, value, mask, call, function, base, kwargs)


def _key_state(query: Tensor, key: Tensor, call: Call) -> tuple[Tensor, Tensor | None]:
    """Keys, and the contextual state that was cached with them or is made now where there is no cache."""
    if not isinstance(call.state.score, Contextual):
        return key, None
    if call.cache is None:
        return key, call.state.state_of(call.hidden)  # type: ignore[arg-type]
    return unpack_state(key, query.shape[-1], query.shape[1])


def _rotated(query: Tensor, key: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    state = call.state
    if state.rotary is None or isinstance(state.score, Bands):
        return query, key
    if state.early:
        query = state.rotate(query, call.positions, "query")
        return query, key if call.keys_done else state.rotate(key, call.key_positions(key.shape[2]), "key")
    length = call.positions.max(dim=1, keepdim=True).values + 1
    return (
        state.rotate(query, call.positions, "query", length),
        state.rotate(key, call.key_positions(key.shape[2]), "key", length),
    )


def _may_fold(method: Fold, query: Tensor, call: Call, base: str, kwargs: dict[str, Any]) -> bool:
    """Columns pay for many queries; a single one takes its bias as a row. A softcap would squash the columns too."""
    folds = getattr(method, "folds", None)
    possible = folds is None or folds(call.state.geometry)
    return possible and base == "sdpa" and query.shape[2] > 1 and kwargs.get("position_bias") is None


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
    if base == "sdpa" and is_large(query, key.shape[2]) and kwargs.get("position_bias") is None:
        output = biased(
            query,
            key,
            value,
            mask,
            is_causal_call(mask, query.shape[2], module, kwargs.get("is_causal")),
            lambda rows, columns: method.bias(
                call.positions[:, rows], key_positions[:, columns], weights, state.geometry
            ),
            scaling=kwargs.get("scaling") or query.shape[-1] ** -0.5,
            dropout=kwargs.get("dropout", 0.0),
        )
        return output, None
    bias = method.bias(call.positions, key_positions, weights, state.geometry).to(query.dtype)
    native = kwargs.pop("position_bias", None)
    bias = bias if native is None else bias + native
    if base == "eager":
        return function(module, query, key, value, bias if mask is None else mask[..., : key.shape[2]] + bias, **kwargs)
    return function(module, query, key, value, mask, position_bias=bias, **kwargs)


def _own(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    call: Call,
    key_state: Tensor | None,
    base: str,
    kwargs: dict[str, Any],
) -> Any:
    """Logits that no host function can make: computed here a block at a time, with the host's softcap, sinks and dropout."""
    state = call.state
    heads, keys = query.shape[1], key.shape[2]
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    causal = base != "eager" and is_causal_call(mask, query.shape[2], module, kwargs.get("is_causal"))
    if isinstance(state.score, Bands) and base == "sdpa":
        output = _banded.flash(query, key, value, call, causal, scaling, kwargs)
        if output is not None:
            return output, None
    key_positions = call.key_positions(keys)
    key, value = repeat_kv(key, heads), repeat_kv(value, heads)
    visible = None
    if isinstance(state.score, Bands):
        logits = _banded.band_logits(state, query, key, call, key_positions, scaling)
        visible = _banded.visible(state.score, call, key_positions)
    else:
        logits = _contextual(state, query, key, call, key_positions, key_state, scaling)
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


def _contextual(
    state: State,
    query: Tensor,
    key: Tensor,
    call: Call,
    key_positions: Tensor,
    key_state: Tensor | None,
    scaling: float,
) -> Any:
    method: Contextual = state.score  # type: ignore[assignment]
    weights = state.weights_of("score")
    query_state = None if key_state is None else state.state_of(call.hidden)  # type: ignore[arg-type]

    def logits(rows: slice, bar: Tensor | None) -> Tensor:
        q = query[:, :, rows]
        scores = torch.matmul(q, key.transpose(2, 3)).float() * scaling
        allowed = (
            torch.ones((1, 1, *scores.shape[2:]), dtype=torch.bool, device=q.device) if bar is None else bar > -1e4
        )
        block = Block(
            query=q,
            key=key,
            scores=scores,
            query_positions=call.positions[:, rows],
            key_positions=key_positions,
            allowed=allowed[:, :1],
            query_state=None if query_state is None else query_state[:, :, rows],
            key_state=key_state,
        )
        return method.logits(block, weights, state.geometry)

    return logits


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
    if base == "sdpa":
        kwargs["is_causal"] = False
    if base == "flex_attention":  # no mask means no mask in flex
        return function(module, query, key, value, None, **kwargs)
    return function(module, query, key, value, None, **kwargs)
