"""Calls whose logits are bands of distance: the flash kernel where the call has its plain form, else blocks of logits."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pospatch.attention.bands import banded_logits
from pospatch.attention.blockwise import repeat_kv
from pospatch.attention.flash import banded_flash, pieces
from pospatch.methods._base import Bands

if TYPE_CHECKING:
    from pospatch.engine._state import Call, State

__all__ = ["band_logits", "flash", "visible"]


def visible(method: Bands, call: Call, key_positions: Tensor) -> Any:
    """Which keys a block of queries sees, as `blockwise` asks it."""
    return lambda rows: method.visible(call.positions[:, rows], key_positions, call.state.geometry)


def band_logits(state: State, query: Tensor, key: Tensor, call: Call, key_positions: Tensor, scaling: float) -> Any:
    """The function of `blockwise` that gives the logits of a block of queries."""
    return banded_logits(
        _bands(state).bands(state.geometry),
        state.paired(query),
        state.paired(key),
        call.positions,
        key_positions,
        scaling,
        partial(_rotate, state),
        two_sided=not state.geometry.causal,
    )


def flash(
    query: Tensor, key: Tensor, value: Tensor, call: Call, causal: bool, scaling: float, kwargs: dict[str, Any]
) -> Tensor | None:
    """The output (batch, query, heads, d) from the CPU's flash kernel, or None where the call needs the logits themselves.

    The kernel takes consecutive tokens under a plain causal triangle: no padding mask, window, softcap, sink, dropout or cache.
    """
    state = call.state
    method = _bands(state)
    plain = (
        causal
        and state.geometry.causal
        and not torch.compiler.is_compiling()
        and query.device.type == "cpu"
        and query.shape[2] == key.shape[2]
        and query.shape[-1] == value.shape[-1]
        and type(method).visible is Bands.visible
        and not kwargs.get("dropout")
        and all(kwargs.get(name) is None for name in ("softcap", "s_aux", "position_bias"))
    )
    if not plain:
        return None
    bands = method.bands(state.geometry)
    start = _start(call.positions)
    if start is None or (start and any(band.unit > 1 for band in bands)):
        return None
    plan = pieces(bands, query.shape[2])
    if plan is None:
        return None
    used = {piece.band for piece in plan}
    query, key = state.paired(query), state.paired(key)
    turned = [
        (_rotate(state, query, band.query(call.positions)), _rotate(state, key, band.key(call.positions)))
        if index in used
        else (query, key)
        for index, band in enumerate(bands)
    ]
    heads = query.shape[1]
    pairs = [(q, repeat_kv(k, heads)) for q, k in turned]
    output = banded_flash(pairs, repeat_kv(value, heads), [scaling * band.amplitude for band in bands], plan)
    return output.transpose(1, 2).contiguous()


def _bands(state: State) -> Bands:
    assert isinstance(state.score, Bands)
    return state.score


def _rotate(state: State, x: Tensor, positions: Tensor) -> Tensor:
    rotary = state.rotary
    assert rotary is not None  # a Bands method is refused where nothing rotates
    return rotary.rotate(x, positions, "query", state.weights_of("rotary"), state.geometry)


def _start(positions: Tensor) -> int | None:
    """The first position where all rows count up by one from it, else None."""
    start = int(positions[0, 0])
    count = torch.arange(start, start + positions.shape[1], device=positions.device)
    return start if bool((positions == count).all()) else None
