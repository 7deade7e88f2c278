from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._base import Rotary
from pospatch.methods._options import number


@dataclass(frozen=True, kw_only=True)
class PRoPE(Rotary):
    """p-RoPE: only the share p of highest frequencies turns, the lowest ones are left without position.

    inv_freq[i] = rope_theta ** (-2 * i / dim) for i < int(p * dim // 2), else 0

    Source: Round and Round We Go! What makes Rotary Positional Encodings useful?, arXiv 2410.06205, section 6.
        transformers calls it `proportional`.

    Args:
        p: share of the pairs that turn, in [0, 1]; 0.75 is the paper's best, 1 is RoPE and 0 is NoPE.
        rope_theta: base of the frequencies, above 1. None keeps the host's, and is 10000 where it has none.

    Departs: on a host that rotates only the first dimensions of each head, `dim` is their number and not head_dim,
        so that the trained pairs stay.

    Raises:
        BadOption: head_dim is odd on a host without a rotary encoding.
    """

    family: ClassVar[str] = "rotary"
    source: ClassVar[str] = "p-RoPE, arXiv 2410.06205, section 6"

    p: float = number(0.75, low=0.0, high=1.0)
    rope_theta: float | None = number(None, above=1.0, optional=True)

    def dim(self, geometry: Geometry) -> int:
        """Dimensions of each head that stand in pairs."""
        return geometry.rotation.dim if geometry.rotation else geometry.head_dim

    def theta(self, geometry: Geometry) -> float:
        """Base of the frequencies."""
        return self.rope_theta or (geometry.rotation.theta if geometry.rotation else 10000.0)

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        if self.dim(geometry) % 2:
            raise BadOption(f"{self.name} turns pairs; head_dim={geometry.head_dim} is odd and must be even")

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        dim = self.dim(geometry)
        turning = int(self.p * dim // 2)
        inv_freq = torch.zeros(dim // 2, dtype=torch.float32, device="cpu")
        exponent = torch.arange(0, 2 * turning, 2, dtype=torch.int64, device="cpu").float() / dim
        inv_freq[:turning] = 1.0 / (self.theta(geometry) ** exponent)
        return inv_freq, 1.0

    def rope_parameters(self, geometry: Geometry) -> dict[str, Any] | None:
        if geometry.rotation is None or geometry.rotation.dim != geometry.head_dim:
            return None
        return {"rope_type": "proportional", "rope_theta": self.theta(geometry), "partial_rotary_factor": self.p}
