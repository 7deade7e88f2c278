"""The carrier: how a call's positions reach the attention function, in every family that dispatches through the registry.

A forward pre-hook on each self-attention module puts one `Call` into that call's keyword arguments; the attention
functions registered here under `pospatch|<base>` receive it with q, k and v. Positions come with the call, so that a
recomputed forward, two forwards before a backward, and threads on one model are right. See ../shared/HOSTS.md,
section 3.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from pospatch.engine import score
from pospatch.engine._cache import CacheView, extend_record, self_attention
from pospatch.engine._calls import parameters
from pospatch.engine._door import told
from pospatch.engine._forward import FORWARD
from pospatch.engine._state import Call, State
from pospatch.engine._view import PREFIX
from pospatch.errors import SeamChanged, UnsupportedHost
from pospatch.methods._base import Forward

__all__ = [
    "CACHES",
    "KEYWORD",
    "call_of",
    "carry",
    "counted",
    "dispatches",
    "exchanged",
    "first_input",
    "first_output",
    "given_to",
    "is_cross",
    "note_positions",
    "positions_of",
    "register",
]

KEYWORD = "pospatch"
CACHES = ("past_key_values", "layer_past", "cache")
NOTE = "_pospatch_positions"
BASES = ("sdpa", "eager", "flex_attention")


def dispatches(module: nn.Module) -> bool:
    """True where the module's forward asks the attention registry for its function."""
    forward = inspect.unwrap(type(module).forward)
    return "ALL_ATTENTION_FUNCTIONS" in getattr(getattr(forward, "__code__", None), "co_names", ())


def is_cross(kwargs: dict[str, Any]) -> bool:
    """True where this call attends to another sequence: no shared axis, so nothing positional happens."""
    return kwargs.get("key_value_states") is not None or kwargs.get("encoder_hidden_states") is not None


def carry(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The pre-hook: hand one Call, and a view of the cache where it needs one, to this call of the module."""
    if is_cross(kwargs):
        return None
    forward = kwargs.pop(FORWARD, None)
    state: State = module._modules[KEYWORD]  # type: ignore[assignment]
    hidden = first_input(module, args, kwargs)
    name = "layer_past" if kwargs.get("layer_past") is not None else "past_key_values"
    cache = kwargs.get(name)
    given = given_to(module, args, kwargs)
    mask, layer = given.get("attention_mask"), given.get("layer_idx")
    call = call_of(module, state, hidden, positions_of(given), self_attention(cache), mask, forward, layer)
    changed = {**kwargs, KEYWORD: call}
    if cache is not None:
        changed[name] = CacheView(cache, call)
    if state.still and kwargs.get("position_embeddings") is not None:
        changed["position_embeddings"] = identity_rotation(kwargs["position_embeddings"])
    return args, {**changed, **state.silent(kwargs)}


def call_of(
    module: nn.Module,
    state: State,
    hidden: Tensor,
    position_ids: Tensor | None,
    cache: Any,
    mask: Any = None,
    forward: Forward | None = None,
    layer: int | None = None,
) -> Call:
    """What one call of an attention module knows of positions; `layer` is its place in the cache, where several share it."""
    if position_ids is not None and position_ids.dim() != 2 and not state.given.now:
        raise UnsupportedHost(
            f"position_ids of shape {tuple(position_ids.shape)} reached {type(module).__name__}; this patch needs (batch, length)"
        )
    geometry, position_ids = told(state, position_ids, hidden)
    seen: Any = 0
    offset: Any = 0
    length = hidden.shape[1]
    if cache is not None:
        own = getattr(module, "layer_idx", getattr(module, "layer_id", 0)) or 0
        layer = own if layer is None else layer
        seen = cache.get_seq_length(layer)
        if isinstance(seen, Tensor):  # a static cache mutates it in place
            seen = seen.clone() if torch.compiler.is_compiling() or not state.needs_key_positions else int(seen)
        offset = cache.get_mask_sizes(length, layer)[1]
    if position_ids is None:
        position_ids = counted(mask, length, seen, hidden.device)
    read = position_ids
    if state.reindex is not None and not state.proof:
        if forward is None:
            raise SeamChanged(
                f"{type(module).__name__} was called without what {state.reindex.method.name} knows of this forward; this "
                "family does not hand keyword arguments down to its attention"
            )
        read = state.reindex(position_ids, module.training, forward)
    call = Call(
        state=state,
        positions=read,
        true=position_ids,
        geometry=geometry,
        cache=cache,
        seen=seen,
        offset=offset,
        hidden=hidden,
    )
    if cache is not None and state.needs_key_positions and isinstance(seen, int) and not torch.compiler.is_compiling():
        call.record = extend_record(cache, seen, read, hidden.shape[0])
    return call


def counted(mask: Any, length: int, seen: Any, device: torch.device) -> Tensor:
    """Positions (batch or 1, length) where the family hands none on: tokens counted without the pads before them.

    A pad is a token that does not see itself.
    """
    if torch.is_tensor(mask) and mask.dim() == 4 and mask.shape[-2:] == (length, length):
        own = mask[:, 0].diagonal(dim1=1, dim2=2)
        if own.dtype == torch.bool:
            inverted = mask[0, 0, 0, -1] & ~mask[0, 0, -1, -1]  # True is what is hidden
            real = own ^ inverted
        else:
            real = own > torch.finfo(own.dtype).min / 2
        return (real.long().cumsum(1) - 1).clamp(min=0)
    return (torch.arange(length, device=device) + seen)[None]


def positions_of(kwargs: dict[str, Any]) -> Tensor | None:
    """The positions of a call: its own argument, or what the rotary module was asked for, noted on what it gave."""
    given = kwargs.get("position_ids")
    if given is not None:
        return given[0] if given.dim() == 3 and _rows_agree(given) else given
    turned = kwargs.get("position_embeddings")
    return getattr(turned[0] if isinstance(turned, tuple) else turned, NOTE, None)


def note_positions(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Forward hook of a rotary module: its positions go with its output to attention modules that are handed nothing else."""
    positions = args[1] if len(args) > 1 else kwargs.get("position_ids")
    first = output[0] if isinstance(output, tuple) else output
    if torch.compiler.is_compiling() or not torch.is_tensor(positions) or not torch.is_tensor(first):
        return
    if positions.dim() == 3 and _rows_agree(positions):
        positions = positions[0]
    if positions.dim() == 2:
        setattr(first, NOTE, positions)


def _rows_agree(position_ids: Tensor) -> bool:
    """True where all rows of 3-row position ids are the same, as they are for text."""
    return not torch.compiler.is_compiling() and bool((position_ids == position_ids[:1]).all())


def given_to(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a call gives by name, arguments in their order included; the first is the hidden states."""
    return kwargs if len(args) < 2 else {**dict(zip(parameters(module)[1:], args[1:], strict=False)), **kwargs}


def first_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states that enter a module: its first argument, whatever its name."""
    if args:
        return args[0]
    if "hidden_states" in kwargs:
        return kwargs["hidden_states"]
    return next(value for value in kwargs.values() if torch.is_tensor(value) and value.dim() >= 3)


def exchanged(
    args: tuple[Any, ...], kwargs: dict[str, Any], old: Tensor, new: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with one tensor in place of another, wherever it is passed."""

    def swap(value: Any) -> Any:
        return new if value is old else value

    return tuple(map(swap, args)), {name: swap(value) for name, value in kwargs.items()}


def first_output(output: Any) -> Tensor:
    """The new hidden states that a module gives: its first tensor, in whatever container."""
    while not torch.is_tensor(output):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output


def identity_rotation(value: Any) -> Any:
    """The same rotary output turned into "no rotation": cos 1 and sin 0, complex 1, or angle 0, in whatever layout."""
    if isinstance(value, tuple) and len(value) == 2 and all(torch.is_tensor(item) for item in value):
        return torch.ones_like(value[0]), torch.zeros_like(value[1])
    if torch.is_tensor(value) and value.is_complex():
        return torch.ones_like(value)
    if torch.is_tensor(value) and value.is_floating_point():
        return torch.zeros_like(value)
    raise SeamChanged(
        f"a rotary module returned {type(value).__name__}, wanted (cos, sin) or a complex tensor; "
        "this family needs a row of its own"
    )


def still_rotary(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook of a rotary module whose rotation is replaced."""
    return identity_rotation(output)


def eager_of(module: nn.Module) -> Callable[..., Any]:
    """The eager attention of the module's own family, which keeps its softcap, sinks and multipliers."""
    for cls in type(module).__mro__:
        source = sys.modules.get(cls.__module__)
        for name in (
            "eager_attention_forward",
            "simple_eager_attention_forward",
            "text_eager_attention_forward",
            "vision_eager_attention_forward",
        ):
            if hasattr(source, name):
                return getattr(source, name)
    raise UnsupportedHost(
        f"{type(module).__name__} has no eager attention function in its file; use attn_implementation='sdpa'"
    )


def _attention(base: str) -> Callable[..., Any]:
    def pospatch_attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> Any:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        function = eager_of(module) if base == "eager" else ALL_ATTENTION_FUNCTIONS[base]
        call: Any = kwargs.pop(KEYWORD, None)
        if call is not None and not isinstance(call, Call):  # a survey, which only looks
            call.see(module, query, key, kwargs, attention_mask)
            call = None
        if call is None:
            return function(module, query, key, value, attention_mask, **kwargs)
        if kwargs.get("indices") is not None:
            raise UnsupportedHost(
                f"{type(module).__name__} attends sparsely by indices; under another attention function it would be dense"
            )
        if call.cache is None and call.positions.shape[-1] != query.shape[2]:
            # images in one sequence, called one by one
            call = replace(call, positions=torch.arange(query.shape[2], device=query.device)[None])
        if not call.state.reached:
            call.state.reached = True
        if call.state.proof:
            return score.open_attention(module, query, key, value, function, base, call.state, kwargs)
        return score.attend(module, query, key, value, attention_mask, call, function, base, kwargs)

    return pospatch_attention


def _refuse(base: str) -> Callable[..., Any]:
    def refused(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        call: Any = kwargs.get(KEYWORD)
        what = sorted(method.name for method in call.state.methods.values()) if isinstance(call, Call) else "pospatch"
        raise UnsupportedHost(
            f"{what} runs with attn_implementation in {BASES}, got {base!r}; call model.set_attn_implementation('sdpa')"
        )

    return refused


def register() -> None:
    """Register our attention functions once; adds names, changes none."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

    for base in {*BASES, *ALL_ATTENTION_FUNCTIONS.valid_keys()}:
        if not base.startswith(PREFIX) and PREFIX + base not in AttentionInterface._global_mapping:
            AttentionInterface.register(PREFIX + base, _attention(base) if base in BASES else _refuse(base))
