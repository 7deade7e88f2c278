from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pospatch.errors import UnsupportedHost
from pospatch.geometry import Geometry
from pospatch.methods._factored import Factored
from pospatch.methods._math import is_default, native_parameters, rotary_inv_freq, standing, standing_inv_freq


@dataclass(frozen=True, kw_only=True)
class NTK(Factored):
    """NTK-aware scaling: a larger base, so that the lowest frequency is divided by the factor and the highest stays.

    rope_theta' = rope_theta * factor ** (dim / (dim - 2)); inv_freq[i] = rope_theta' ** (-2 * i / dim)

    Source: bloc97, "NTK-Aware Scaled RoPE" (2023); written down in YaRN, arXiv 2309.00071, section 3.1.

    Args:
        factor: wanted length / trained length, at least 1.
        original_max_position_embeddings: trained length in tokens; None is the model's own. Only the reached length
            follows it.

    Departs: on a spectrum that is not theta ** (-2i / dim), each frequency is multiplied by factor ** (-2i / (dim -
        2)), which is the same thing where it is.

    Raises:
        UnsupportedHost: the layer has no rotary encoding, or fewer than 4 rotated dimensions.
    """

    source: ClassVar[str] = "NTK-aware scaled RoPE (bloc97, 2023); arXiv 2309.00071, section 3.1"

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        dim = standing(self.name, geometry).dim
        if dim < 4:
            raise UnsupportedHost(f"{self.name} needs at least 4 rotated dimensions a head and this model has {dim}")

    def theta(self, geometry: Geometry) -> float:
        """The larger base."""
        rotation = standing(self.name, geometry)
        return rotation.theta * self.factor ** (rotation.dim / (rotation.dim - 2))

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        rotation = standing(self.name, geometry)
        if is_default(rotation):
            return rotary_inv_freq(self.theta(geometry), rotation.dim), 1.0
        pairs = torch.arange(rotation.dim // 2, dtype=torch.float32, device="cpu")
        return standing_inv_freq(rotation) * self.factor ** (-2 * pairs / (rotation.dim - 2)), rotation.attention_factor

    def rope_parameters(self, geometry: Geometry) -> dict[str, Any] | None:
        return native_parameters("default", geometry, rope_theta=self.theta(geometry))
