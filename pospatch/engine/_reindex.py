"""Keys of a method that re-indexes by ranges: cached in the form that its last range reads, turned on for the others.

The last range holds most keys of a long text. What its map gives for a position never changes, so keys enter the cache
rotated by it, and a step turns only the keys of the ranges before it whose map is another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pospatch.methods._base import Band, Bands, apply_rotation

if TYPE_CHECKING:
    from pospatch.engine._state import Call, State

__all__ = ["form_of", "rotated", "stored_form"]

TABLE = "_pospatch_turns"


def stored_form(state: State) -> Band | None:
    """The range in whose form keys are cached, or None where they are cached as they come: where a rotation depends on the
    length, or is no plain one that could be turned on."""
    rotary = state.rotary
    if not isinstance(state.score, Bands) or rotary is None or rotary.dynamic or not state.geometry.causal:
        return None
    bands = state.score.bands(state.geometry)
    one_map = all(band.key is bands[-1].key for band in bands)
    return bands[-1] if one_map or rotary.plain else None


def rotated(state: State, x: Tensor, positions: Tensor) -> Tensor:
    """q or k, in pairs, at positions that a map of a range gave."""
    rotary = state.rotary
    assert rotary is not None  # a Bands method is refused where nothing rotates
    return rotary.rotate(x, positions, "query", state.weights_of("rotary"), state.geometry)


def form_of(call: Call, key: Tensor, bands: Sequence[Band], band: Band, positions: Tensor, part: slice) -> Tensor:
    """The keys `part` of a call as `band` reads them, from what the cache or the projection gave.

    Args:
        key: all keys (batch, kv_heads, key, head_dim), in pairs.
        positions: of all keys, (batch or 1, key).
    """
    key = key[:, :, part]
    if not call.keys_done:
        return rotated(call.state, key, band.key(positions[:, part]))
    if band.key is bands[-1].key or key.shape[2] == 0:
        return key
    cos, sin = _turn(call, bands[-1], band, positions, part, key.dtype)
    return apply_rotation(key, cos, sin)


def _turn(
    call: Call, stored: Band, band: Band, positions: Tensor, part: slice, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin of the angle between the two forms, from those of each: as exact as rotating anew. Layers share it."""
    state = call.state
    key = (state.rotary, state.score, band.start, part.start, part.stop, _spectrum(state), dtype)
    shared: dict[Any, Any] = {} if call.record is None else vars(call.record).setdefault(TABLE, {})
    if key not in shared:
        rotary = state.rotary
        assert rotary is not None  # as above
        inv_freq = rotary.frequencies(state.geometry)[0].to(device=positions.device, dtype=torch.float32)
        new, old = (each.key(positions[:, part])[..., None].float() * inv_freq for each in (band, stored))
        cos, sin = new.cos() * old.cos() + new.sin() * old.sin(), new.sin() * old.cos() - new.cos() * old.sin()
        shared[key] = tuple(torch.cat((x, x), dim=-1)[:, None].to(dtype) for x in (cos, sin))
    found: tuple[Tensor, Tensor] = shared[key]
    return found


def _spectrum(state: State) -> tuple[Any, ...]:
    """What a table depends on beside the methods: layers of one spectrum share it."""
    if state.spectrum is None:
        rotation = state.geometry.rotation
        assert rotation is not None  # as above
        held = (rotation.dim, rotation.theta, rotation.rope_type, state.geometry.length, state.geometry.head_dim)
        state.spectrum = (*held, tuple(rotation.inv_freq.tolist()))
    return state.spectrum
