from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pospatch.errors import UnsupportedHost
from pospatch.geometry import Geometry
from pospatch.methods._factored import Factored
from pospatch.methods._math import is_default, native_parameters, standing, standing_inv_freq


@dataclass(frozen=True, kw_only=True)
class DynamicNTK(Factored):
    """Dynamic NTK scaling: the base grows with the number of tokens seen, and is the trained one up to the trained
    length.

    growth = factor * max(length, L) / L - (factor - 1); rope_theta' = rope_theta * growth ** (dim / (dim - 2))

    Source: emozilla, "Dynamically Scaled RoPE" (2023); arXiv 2309.00071, section 3.3.

    Args:
        factor: slope of the growth, at least 1; 1 grows with length / L.
        original_max_position_embeddings: L, the trained length in tokens; None is the model's own.

    Departs: `length` is the largest position of each sequence plus 1, not the longest of the batch, and nothing is
        kept between calls; keys are rotated anew when the length grows.

    Raises:
        UnsupportedHost: the layer has no rotary encoding, or fewer than 4 rotated dimensions.
    """

    exact_decode: ClassVar[bool] = False
    source: ClassVar[str] = "Dynamic NTK (emozilla, 2023); arXiv 2309.00071, section 3.3"

    @property
    def dynamic(self) -> bool:
        return True

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        dim = standing(self.name, geometry).dim
        if dim < 4:
            raise UnsupportedHost(f"{self.name} needs at least 4 rotated dimensions a head and this model has {dim}")

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        rotation = standing(self.name, geometry)
        if length is None:
            return standing_inv_freq(rotation), rotation.attention_factor
        dim, trained = rotation.dim, self.original(geometry)
        seen = torch.maximum(length, torch.tensor(trained, dtype=length.dtype, device=length.device))
        growth = (self.factor * seen / trained) - (self.factor - 1)
        if is_default(rotation):
            base = rotation.theta * growth ** (dim / (dim - 2))
            exponent = torch.arange(0, dim, 2, dtype=torch.int64, device=length.device).to(torch.float) / dim
            return 1.0 / (base**exponent), 1.0
        pairs = torch.arange(dim // 2, dtype=torch.float32, device=length.device)
        inv_freq = standing_inv_freq(rotation).to(length.device)
        return inv_freq * growth ** (-2 * pairs / (dim - 2)), rotation.attention_factor

    def rope_parameters(self, geometry: Geometry) -> dict[str, Any] | None:
        if self.original(geometry) != geometry.length:  # transformers reads L from max_position_embeddings alone
            return None
        return native_parameters("dynamic", geometry, factor=self.factor)
