from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._base import Rotary
from pospatch.methods._math import rotary_inv_freq
from pospatch.methods._options import number


@dataclass(frozen=True, kw_only=True)
class RoPE(Rotary):
    """Rotary position embedding: pair i of q and k turns by n * inv_freq[i] radians at position n.

    inv_freq[i] = rope_theta ** (-2 * i / dim), i = 0 .. dim / 2 - 1

    Source: RoFormer: Enhanced Transformer with Rotary Position Embedding, arXiv 2104.09864, equations 14 and 15.

    Args:
        rope_theta: base of the frequencies, above 1. None keeps the base of the rotary encoding that the host has,
            and is 10000 (the paper's value) where it has none.
        partial_rotary_factor: share of each head that turns, in (0, 1]; dim = int(head_dim * partial_rotary_factor).
            None keeps what the host rotates, and rotates whole heads where it has no rotary encoding.

    Departs: pairs are dimensions i and i + dim / 2, the paper's are 2i and 2i + 1; on a host with interleaved pairs
        the engine keeps the host's.

    Raises:
        BadOption: the number of rotated dimensions is odd or zero.
    """

    family: ClassVar[str] = "rotary"
    source: ClassVar[str] = "RoFormer, arXiv 2104.09864, equations 14 and 15"

    rope_theta: float | None = number(None, above=1.0, optional=True)
    partial_rotary_factor: float | None = number(None, above=0.0, high=1.0, optional=True)

    def dim(self, geometry: Geometry) -> int:
        """Rotated dimensions of each head."""
        if self.partial_rotary_factor is not None:
            return int(geometry.head_dim * self.partial_rotary_factor)
        return geometry.rotation.dim if geometry.rotation else geometry.head_dim

    def theta(self, geometry: Geometry) -> float:
        """Base of the frequencies."""
        return self.rope_theta or (geometry.rotation.theta if geometry.rotation else 10000.0)

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        dim = self.dim(geometry)
        if dim < 2 or dim % 2:
            raise BadOption(
                f"{self.name} turns dimensions in pairs and would turn {dim} of head_dim={geometry.head_dim}; an even "
                "number is wanted, choose partial_rotary_factor so that int(head_dim * partial_rotary_factor) is even"
            )

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        return rotary_inv_freq(self.theta(geometry), self.dim(geometry)), 1.0

    def rope_parameters(self, geometry: Geometry) -> dict[str, Any] | None:
        if geometry.rotation is None or geometry.rotation.dim != self.dim(geometry):
            return None
        found: dict[str, Any] = {"rope_type": "default", "rope_theta": self.theta(geometry)}
        if self.dim(geometry) != geometry.head_dim:
            found["partial_rotary_factor"] = self.dim(geometry) / geometry.head_dim
        return found
