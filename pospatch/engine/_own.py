"""Attention with mathematics of its own, which no registered function reaches: what the call brings is all that can be changed.

An additive bias goes into the argument that takes one (the mask, or the family's own bias), native positions that come with the
call are zeroed, and sines and cosines that stand in a buffer are exchanged there. q and k never leave such a module.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from pospatch.engine._calls import parameters
from pospatch.engine._seams import KEYWORD, call_of, first_input, given_to, is_cross, positions_of
from pospatch.engine._sites import Sites
from pospatch.engine._state import Call, State
from pospatch.engine._tables import Table
from pospatch.engine._undo import Undo
from pospatch.errors import UnsupportedHost
from pospatch.methods._base import Bias

__all__ = ["carry_own", "clear_sincos", "open_masks", "respin_sincos"]


def carry_own(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Pre-hook of such a module: zero what is cleared, add the bias of this call, or open every mask during the proof."""
    if is_cross(kwargs):
        return None
    state: State = module._modules[KEYWORD]  # type: ignore[assignment]
    given = given_to(module, args, kwargs)
    state.reached = True
    changes = open_masks(given) if state.proof else _with_bias(module, args, kwargs, state, given)
    changes |= state.silent(given)
    held = given.get(state.carrier)
    if state.carrier in state.silenced and state.carrier not in changes and torch.is_tensor(held):
        changes[state.carrier] = torch.zeros_like(held)
    return put(module, args, kwargs, changes)


def put(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], changes: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with some arguments changed, each passed as it was."""
    names = parameters(module)[: len(args)]
    changed = tuple(changes.get(name, value) for name, value in zip(names, args, strict=False))
    return (*changed, *args[len(names) :]), {**kwargs, **{k: v for k, v in changes.items() if k not in names}}


def open_masks(given: dict[str, Any]) -> dict[str, Any]:
    """Every mask with the value it has where a token sees itself."""
    return {
        name: value[..., :1, :1].expand_as(value)
        for name, value in given.items()
        if "mask" in name and torch.is_tensor(value) and value.dim() >= 3
    }


def _with_bias(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], state: State, given: dict[str, Any]
) -> dict[str, Any]:
    if not isinstance(state.score, Bias):
        return {}
    hidden = first_input(module, args, kwargs)
    cache = given.get("layer_past") if given.get("layer_past") is not None else given.get("past_key_values")
    mask = given.get("attention_mask") if state.carrier == "attention_mask" else None  # others mark what is hidden
    call: Call = call_of(module, state, hidden, positions_of(given), cache, mask)
    held = given.get(state.carrier)
    keys = hidden.shape[1] + int(call.seen)
    bias = state.score.bias(call.positions, call.key_positions(keys), state.weights_of("score"), call.geometry)
    return {state.carrier: _joined(module, state, held, bias.to(hidden.dtype))}


def _joined(module: nn.Module, state: State, held: Any, bias: Tensor) -> Tensor:
    """The argument with the bias in it; a native bias in the same argument is replaced."""
    if state.carrier in state.silenced:
        return bias[0] if torch.is_tensor(held) and held.dim() == 3 else bias
    if held is None:
        return bias + _triangle(bias) if state.geometry.causal else bias
    held = held[..., : bias.shape[-1]]
    if held.dtype == torch.bool:  # as transformers makes them: True where a key is seen
        held = torch.zeros_like(held, dtype=bias.dtype).masked_fill(~held, torch.finfo(bias.dtype).min / 2)
    if not held.is_floating_point():
        raise UnsupportedHost(
            f"{type(module).__name__} got a mask of {held.dtype} in this call and {state.methods['score'].name} needs one that "
            "it can be added to"
        )
    return held + bias


def _triangle(bias: Tensor) -> Tensor:
    """The causal mask that a call without one means: the last query is the last key."""
    queries, keys = bias.shape[-2:]
    floor = torch.full((queries, keys), torch.finfo(bias.dtype).min / 2, device=bias.device, dtype=bias.dtype)
    return floor.triu(keys - queries + 1)


def clear_sincos(sites: Sites, undo: Undo) -> None:
    """Sines 0 and cosines 1 at every position."""
    for table in sites.sincos:
        rows = table.weight.detach()
        still = torch.cat((torch.zeros_like(rows).chunk(2, -1)[0], torch.ones_like(rows).chunk(2, -1)[1]), dim=-1)
        _exchange(table, still, undo)


def respin_sincos(sites: Sites, spectrum: tuple[Tensor, float], rows: int, undo: Undo) -> None:
    """Sines and cosines of other frequencies, for as many positions as the method reaches."""
    inv_freq, amplitude = spectrum
    for table in sites.sincos:
        old = table.weight
        positions = torch.arange(max(rows, old.shape[0]), dtype=torch.float32)
        angles = positions[:, None] * inv_freq.cpu().float()
        made = torch.cat((angles.sin(), angles.cos()), dim=-1) * amplitude
        _exchange(table, made.to(device=old.device, dtype=old.dtype), undo)


def _exchange(table: Table, rows: Tensor, undo: Undo) -> None:
    if table.trained:
        undo.set_parameter(table.module, table.tensor, nn.Parameter(rows, requires_grad=False))
    else:
        undo.set_buffer(table.module, table.tensor, rows)
