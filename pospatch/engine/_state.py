"""What a patch keeps on one attention module, and what travels with one call of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from pospatch.engine._given import Given
from pospatch.engine._layout import paired
from pospatch.geometry import Geometry
from pospatch.methods._base import Bands, Contextual, Method, Norm, QueryScale, Rotary, apply_rotation, cos_sin_of

if TYPE_CHECKING:
    from pospatch.engine._door import Door
    from pospatch.engine.positions import Reindex

__all__ = ["Call", "State"]


class Turns(NamedTuple):
    """Positions (batch or 1, length), and the cosines and sines of their angles."""

    positions: Tensor
    cos: Tensor
    sin: Tensor


class State(nn.Module):
    """The methods that act in one attention module, with their learned tensors as parameters `slot__name`.

    Parameters live here, so that they are in the state dict, move with `.to()`, and are sharded by FSDP like any other.
    """

    def __init__(
        self,
        geometry: Geometry,
        methods: dict[str, Method],
        *,
        drop_bias: bool = False,
        still: bool = False,
        carrier: str = "",
        silenced: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.methods = methods
        self.drop_bias = drop_bias  # the host's own additive bias is replaced
        self.still = still  # this layer's native rotation is replaced by the identity
        self.carrier = carrier  # the argument that takes a bias, where no registered function is asked
        self.silenced = silenced  # arguments that bring native positions, to be zeroed
        self.proof = False  # only during the proof: attend both ways with nothing of ours
        self.reached = False
        self.frequencies: dict[torch.device, tuple[Tensor, float]] = {}  # of the rotation put here
        self.spectrum: tuple[Any, ...] | None = None  # of the rotation here, looked up once
        self.reindex: Reindex | None = None  # which positions are read here, where an Index method chooses them
        self.door: Door | None = None  # where the call says what this module is not handed
        self.given = Given()  # coordinates from the caller

    def forward(self, slot: str) -> dict[str, Tensor]:
        """The learned tensors of one method, by their own names; a call, so that offloaded ones are brought for it."""
        prefix = f"{slot}__"
        owned = ((name, value) for name, value in self._parameters.items() if value is not None)
        return {name.removeprefix(prefix): value for name, value in owned if name.startswith(prefix)}

    @property
    def rotary(self) -> Rotary | None:
        """What rotates q and k here, or None."""
        return self.methods.get("rotary")  # type: ignore[return-value]

    @property
    def score(self) -> Method | None:
        """What changes the logits here, or None."""
        return self.methods.get("score")

    @property
    def norm(self) -> Norm | None:
        """What brings q and k to one size here, or None."""
        return self.methods.get("norm")  # type: ignore[return-value]

    @property
    def temperature(self) -> QueryScale | None:
        """What scales q here, or None."""
        return self.methods.get("temperature")  # type: ignore[return-value]

    @property
    def early(self) -> bool:
        """True where a key's rotation never changes, so that it is applied before the cache."""
        return self.rotary is not None and not self.rotary.dynamic and not isinstance(self.score, Bands)

    @property
    def needs_key_positions(self) -> bool:
        """True where the call must know the position of every key."""
        return self.score is not None or (self.rotary is not None and not self.early)

    def weights_of(self, slot: str) -> dict[str, Tensor]:
        """The learned tensors of one method, by their own names; empty where it has none."""
        return self(slot) if self._parameters else {}

    def rotate(
        self,
        x: Tensor,
        positions: Tensor,
        side: str,
        length: Tensor | None = None,
        geometry: Geometry | None = None,
        shared: list[Turns] | None = None,
    ) -> Tensor:
        """Rotate q or k of this layer, whatever order the host keeps the pairs in; what turns one is left in `shared` for the
        other, which may stand at the same positions."""
        rotary = self.rotary
        assert rotary is not None  # only asked where something rotates
        geometry = self.geometry if geometry is None else geometry
        if length is not None or not rotary.plain:
            return rotary.rotate(self.paired(x), positions, side, self.weights_of("rotary"), geometry, length)
        shared = [] if shared is None else shared
        if not (shared and shared[0].positions is positions and shared[0].cos.dtype == x.dtype):
            shared[:] = [Turns(positions, *self._cos_sin(positions, x.dtype, geometry))]
        return apply_rotation(self.paired(x), shared[0].cos, shared[0].sin)

    def _cos_sin(self, positions: Tensor, dtype: torch.dtype, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """`Rotary.cos_sin` of this layer; frequencies that no length changes are made once a device."""
        rotary = self.rotary
        assert rotary is not None  # as above
        if geometry is not self.geometry or torch.compiler.is_compiling():
            return rotary.cos_sin(positions, geometry, dtype)
        device = positions.device
        found = self.frequencies.get(device)
        if found is None:
            with torch.inference_mode(False):
                inv_freq, amplitude = rotary.frequencies(geometry)
                found = inv_freq.to(device=device, dtype=torch.float32), amplitude
            if type(found[0]) is Tensor:  # what stands for a tensor in a trace is gone with the trace
                self.frequencies[device] = found
        return cos_sin_of(*found, positions, dtype)

    def __getstate__(self) -> dict[str, Any]:
        """Frequencies are made again where a copy stands, which may be another device."""
        return {**super().__getstate__(), "frequencies": {}}

    def paired(self, x: Tensor) -> Tensor:
        """The rotated pairs moved to (i, i + half) of the first dimensions."""
        rotation = self.geometry.rotation
        return x if rotation is None or rotation.layout == "half" else paired(x, rotation.layout, rotation.dim)

    def silent(self, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call that bring native positions, zeroed."""
        return {
            name: torch.zeros_like(value)
            for name in self.silenced
            if name != self.carrier and torch.is_tensor(value := given.get(name)) and value.is_floating_point()
        }

    def state_of(self, hidden: Tensor) -> Tensor | None:
        """The per-token state of a contextual method, or None."""
        if not isinstance(self.score, Contextual):
            return None
        return self.score.state(hidden, self.weights_of("score"), self.geometry)


@dataclass
class Call:
    """One call of one attention module: whose state, and where its queries stand. Nothing is kept after it.

    Args:
        state: the module's State.
        positions: (batch or 1, query) int64, positions of the queries as they are read here.
        true: the same as the model counts them, which differ where an Index method stands.
        geometry: the layer's, with the grid of this call's images.
        cache: the real cache of this call, or None.
        seen: tokens in the cache before this call.
        offset: index of the first key that the cache returns.
        hidden: hidden states that entered the module, (batch, query, width).
        keys_done: set by the cache view when it has rotated the new keys.
        record: positions of all cached tokens, where they are needed.
        held: indices of the tokens whose keys the cache still has, or None where it has all.
        turned: what the last rotation turned by.
    """

    state: State
    positions: Tensor
    true: Tensor
    geometry: Geometry = field(default=None, repr=False)  # type: ignore[assignment]  # the state's, if nothing else is given
    cache: Any = None
    seen: Any = 0
    offset: Any = 0
    hidden: Tensor | None = None
    keys_done: bool = False
    record: Tensor | None = field(default=None, repr=False)
    held: Tensor | None = field(default=None, repr=False)
    turned: list[Turns] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.geometry = self.geometry or self.state.geometry

    def rotate(self, x: Tensor, positions: Tensor, side: str) -> Tensor:
        """q or k by angles that no length changes; at the same positions they share cos and sin."""
        return self.state.rotate(x, positions, side, geometry=self.geometry, shared=self.turned)

    def key_positions(self, keys: int) -> Tensor:
        """Positions (batch or 1, key) of all keys of this call."""
        if self.cache is None:
            return self.positions
        if self.record is None:
            return self._contiguous(keys)
        if self.held is not None:
            return self.record[:, self.held]
        held = self.record[:, self.offset : self.offset + keys]
        # a static cache returns slots that are still empty; they are masked, so any position will do
        return torch.nn.functional.pad(held, (0, keys - held.shape[1])) if held.shape[1] < keys else held

    def _contiguous(self, keys: int) -> Tensor:
        """Without a record the past ends right before the last real query, which has the largest position: pads have 0."""
        positions, query = self.positions, self.positions.shape[1]
        last = positions.argmax(dim=1, keepdim=True)
        slots = torch.arange(keys, device=positions.device)[None] + self.offset - self.seen
        where = positions.gather(1, last) + slots - last
        own = (slots >= 0) & (slots < query)
        return torch.where(own, positions.expand(where.shape[0], -1)[:, slots[0].clamp(0, query - 1)], where)
