"""A view of a cache for one call: rotates new keys on their way in and remembers where they stand.

The real cache keeps the tensors; reordering, cropping, offloading and quantizing it work as before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pospatch.attention._parts import count, split
from pospatch.engine._follow import keep
from pospatch.engine._forget import announce, forget
from pospatch.engine._reindex import rotated, stored_form
from pospatch.engine._state import Call
from pospatch.errors import UnsupportedHost

__all__ = ["CacheView", "extend_record", "pack_state", "self_attention", "unpack_state"]

RECORD = "_pospatch_positions"


class CacheView:
    """Stands for `cache` inside one attention call; `isinstance` and every attribute answer as the real one does."""

    def __init__(self, cache: Any, call: Call) -> None:
        self._pospatch_cache = cache
        self._pospatch_call = call

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # type: ignore[override]
        return type(self._pospatch_cache)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pospatch_cache, name)

    @property
    def self_attention_cache(self) -> Any:
        """The decoder's own half of an encoder-decoder cache, seen through the same call."""
        return CacheView(self._pospatch_cache.self_attention_cache, self._pospatch_call)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Store the new keys as the patch wants them and return all of them."""
        call = self._pospatch_call
        state = call.state
        if self._is_latent(key_states):
            return self._keep_latent(key_states, value_states, layer_idx, *args, **kwargs)
        if state.early and not state.proof:
            key_states = call.rotate(key_states, call.positions, "key")
            call.keys_done = True
        elif not state.proof and (band := stored_form(state)) is not None:
            key_states = rotated(state, state.paired(key_states), band.key(call.positions))
            call.keys_done = True
        token_state = None if state.proof else state.state_of(call.hidden) if call.hidden is not None else None
        if token_state is not None:
            self._refuse_quantized(layer_idx)
            key_states = pack_state(key_states, token_state)
        announce(call, layer_idx)
        found = self._pospatch_cache.update(key_states, value_states, layer_idx, *args, **kwargs)
        call.held = forget(call, layer_idx)
        return found

    def _is_latent(self, key_states: Tensor) -> bool:
        """True where what is cached is not k: some hosts keep a compressed form, and make k of it again at every step."""
        geometry = self._pospatch_call.state.geometry
        return (key_states.shape[1], key_states.shape[-1]) != (geometry.kv_heads, geometry.head_dim)

    def _keep_latent(self, latent: Tensor, other: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Nothing of ours is in it: keys are rotated after it is read, at the positions that are remembered beside it."""
        call = self._pospatch_call
        if call.hidden is not None and not call.state.proof and call.state.state_of(call.hidden) is not None:
            raise UnsupportedHost(
                "a state beside the keys needs a cache of keys, and this family caches a compressed form of them"
            )
        if isinstance(call.seen, int) and call.record is None and not torch.compiler.is_compiling():
            call.record = extend_record(self._pospatch_cache, call.seen, call.positions, latent.shape[0])
        return self._pospatch_cache.update(latent, other, layer_idx, *args, **kwargs)

    def _refuse_quantized(self, layer: int) -> None:
        """A state is summed over all tokens: a few bits of it would add up to a different model."""
        from transformers.cache_utils import BaseQuantizedLayer

        layers = getattr(self._pospatch_cache, "layers", [])
        if layer < len(layers) and isinstance(layers[layer], BaseQuantizedLayer):
            score = self._pospatch_call.state.score
            name = "this method" if score is None else score.name
            raise UnsupportedHost(
                f"{name} keeps a state beside the keys, and {type(layers[layer]).__name__} would store it in a few bits; "
                "use a cache that is not quantized, such as DynamicCache"
            )


def pack_state(key: Tensor, token_state: Tensor) -> Tensor:
    """Append a per-token state (batch, heads or kv_heads, length, c) to the keys, so that it lives and is reordered with them.

    Keys of a narrow type get several columns for each number, whose sum it is: sums over thousands of tokens need them.
    """
    batch, heads, length, _ = token_state.shape
    kv_heads = key.shape[1]
    parts = split(token_state, key.dtype).reshape(batch, kv_heads, heads // kv_heads, length, -1)
    packed = parts.permute(0, 1, 3, 2, 4).reshape(batch, kv_heads, length, -1)
    return torch.cat((key, packed), dim=-1)


def unpack_state(key: Tensor, head_dim: int, heads: int) -> tuple[Tensor, Tensor | None]:
    """Split what `pack_state` joined for a state of `heads` heads: keys and (batch, heads, key, c) float32, or None."""
    extra = key.shape[-1] - head_dim
    if extra <= 0:
        return key, None
    batch, kv_heads, length, _ = key.shape
    parts = key[..., head_dim:].reshape(batch, kv_heads, length, heads // kv_heads, -1, count(key.dtype))
    packed = parts.to(torch.promote_types(key.dtype, torch.float32)).sum(dim=-1)
    return key[..., :head_dim], packed.permute(0, 1, 3, 2, 4).reshape(batch, heads, length, -1)


def self_attention(cache: Any) -> Any:
    """The cache of self-attention inside an encoder-decoder cache, or the cache itself."""
    return getattr(cache, "self_attention_cache", cache)


def extend_record(cache: Any, seen: int, positions: Tensor, batch: int) -> Tensor:
    """The positions of all cached tokens, those of this call included; kept on the cache, cut where the cache was cropped."""
    positions = positions.expand(batch, -1)
    past = getattr(cache, RECORD, None)
    if past is None or seen == 0:
        past = positions[:, :0]
    if past.shape[1] < seen:
        # filled by someone else (a prefix, an unpatched forward): it stands right before these tokens
        missing = seen - past.shape[1]
        first = positions[:, :1] - past.shape[1] - missing
        past = torch.cat(
            (past.expand(batch, -1), (first + torch.arange(missing, device=positions.device)).clamp(min=0)), dim=1
        )
    if past.shape[0] != batch:
        past = past.repeat_interleave(max(batch // past.shape[0], 1), dim=0)[:batch]
    if past.shape == (batch, seen + positions.shape[1]) and torch.equal(past[:, seen:], positions):
        return past  # another layer of the same forward was here before
    record = torch.cat((past[:, :seen], positions), dim=1)
    keep(cache, RECORD, record)
    return record
