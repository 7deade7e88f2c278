"""Calls whose logits depend on content: by any kernel where a sum folds or turns, else from blocks of logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pospatch.attention._mask import is_causal_call, seen_keys
from pospatch.attention.biased import biased
from pospatch.attention.blockwise import is_large, repeat_kv
from pospatch.attention.contextual import contextual, folded_columns, running_sums, turned
from pospatch.attention.fold import folded
from pospatch.engine._cache import unpack_state
from pospatch.engine._offsets import added, plain
from pospatch.methods._base import Block, Contextual, SummedBias, SummedRotation

if TYPE_CHECKING:
    from pospatch.engine._state import Call

__all__ = ["attend", "key_state"]

Function = Callable[..., Any]
SPAN = 8192.0  # nats that a folded bias may span: beyond it float32 sums of q.k and the bias lose 1e-3


def key_state(query: Tensor, key: Tensor, call: Call) -> tuple[Tensor, Tensor | None]:
    """Keys, and the state that was cached with them or is made now where there is no cache."""
    method = call.state.score
    if not isinstance(method, Contextual):
        return key, None
    if call.cache is None:
        return key, call.state.state_of(call.hidden)  # type: ignore[arg-type]
    return unpack_state(key, query.shape[-1], key.shape[1] if method.shared_state else query.shape[1])


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    call: Call,
    state: Tensor | None,
    function: Function,
    base: str,
    kwargs: dict[str, Any],
) -> Any:
    """Attention of one call with a contextual method, from the state of all keys."""
    method = call.state.score
    if isinstance(method, SummedRotation):
        query, key = _turned(method, query, key, mask, call, _held(method, state))
        return function(module, query, key, value, mask, **kwargs)
    if isinstance(method, SummedBias):
        sums = running_sums(_held(method, state), seen_keys(mask, query, key.shape[2]))[..., 0]
        return _summed(module, query, key, value, mask, call, sums, function, base, kwargs)
    return _logits(module, query, key, value, mask, call, state, base, kwargs)


def _held(method: Contextual, state: Tensor | None) -> Tensor:
    assert state is not None, f"{method.name} returned no state"
    return state


def _own(call: Call, x: Tensor, queries: int) -> Tensor:
    """The rows of x (batch, heads, key, ...) that belong to this call's own tokens."""
    start = call.seen - call.offset if call.cache is not None else 0
    return x.index_select(2, torch.arange(queries, device=x.device) + start)


def _turned(
    method: SummedRotation, query: Tensor, key: Tensor, mask: Any, call: Call, state: Tensor
) -> tuple[Tensor, Tensor]:
    seen = seen_keys(mask, query, key.shape[2])
    if seen is not None:
        state = state.masked_fill(~seen[:, None, :, None], 0.0)
    weights, geometry = call.state.weights_of("score"), call.state.geometry
    angles = running_sums(method.angles(state, weights, geometry, _documents(call)), seen)
    return turned(query, _own(call, angles, query.shape[2])), turned(key, angles)


def _documents(call: Call) -> Tensor | None:
    """The number of each token's document (batch or 1, key): positions that do not count up by one start another."""
    if call.cache is not None:
        return None
    starts = call.true[:, 1:] != call.true[:, :-1] + 1
    return torch.nn.functional.pad(starts.long().cumsum(dim=1), (1, 0))


def _summed(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    call: Call,
    sums: Tensor,
    function: Function,
    base: str,
    kwargs: dict[str, Any],
) -> Any:
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    queries, native = query.shape[2], kwargs.pop("position_bias", None)
    simple = plain(base, kwargs)
    if simple and native is None and queries > 1 and _span(sums) <= SPAN:
        bias = (sums[:, :, -1:] - sums).float()
        q, k, v = folded(query, key, value, folded_columns(bias, key.shape[1], scaling, key.dtype), scaling)
        output, weights = function(module, q, k, v, mask, **{**kwargs, "scaling": scaling})
        return output[..., : value.shape[-1]].contiguous(), weights  # some hosts take a view of it
    own = _own(call, sums, queries)

    def offsets(rows: slice, columns: slice) -> Tensor:
        found = (own[:, :, rows, None] - sums[:, :, None, columns]).float()
        return found if native is None else found + native[:, :, rows if native.shape[2] > 1 else slice(None), columns]

    if simple and is_large(query, key.shape[2]):
        causal = is_causal_call(mask, queries, module, kwargs.get("is_causal"))
        dropout = kwargs.get("dropout", 0.0)
        return biased(query, key, value, mask, causal, offsets, scaling=scaling, dropout=dropout), None
    return added(module, query, key, value, mask, offsets(slice(None), slice(None)), function, base, kwargs)


def _span(sums: Tensor) -> float:
    """Nats between the largest and the smallest sum; 0 where the number cannot be looked at."""
    if torch.compiler.is_compiling():
        return 0.0
    low, high = torch.aminmax(sums.detach())
    return float(high - low)


def _logits(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    call: Call,
    state: Tensor | None,
    base: str,
    kwargs: dict[str, Any],
) -> Any:
    """Logits that no host function can make, with the host's softcap, sinks and dropout."""
    method: Contextual = call.state.score  # type: ignore[assignment]
    weights, geometry = call.state.weights_of("score"), call.state.geometry
    heads, queries, native = query.shape[1], query.shape[2], kwargs.get("position_bias")
    key_positions = call.key_positions(key.shape[2])
    key, value = repeat_kv(key, heads), repeat_kv(value, heads)
    key_state = None if state is None else repeat_kv(state, heads)
    query_state = None if key_state is None else _own(call, key_state, queries)

    def logits(rows: slice, columns: slice, scores: Tensor, allowed: Tensor) -> Tensor:
        block = Block(
            query=query[:, :, rows],
            key=key[:, :, columns],
            scores=scores,
            query_positions=call.positions[:, rows],
            key_positions=key_positions[:, columns],
            allowed=allowed,
            query_state=None if query_state is None else query_state[:, :, rows],
            key_state=None if key_state is None else key_state[:, :, columns],
        )
        found = method.logits(block, weights, geometry)
        return found if native is None else found + native[:, :, rows if native.shape[2] > 1 else slice(None), columns]

    return contextual(
        query,
        key,
        value,
        mask,
        base != "eager" and is_causal_call(mask, queries, module, kwargs.get("is_causal")),
        logits,
        scaling=kwargs.get("scaling") or query.shape[-1] ** -0.5,
        planes=method.planes(geometry),
        dropout=kwargs.get("dropout", 0.0),
        softcap=kwargs.get("softcap"),
        cap_first=method.cap_first,
        sinks=kwargs.get("s_aux"),
        need_weights=base == "eager",
    )
