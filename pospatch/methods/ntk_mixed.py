from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pospatch.geometry import Geometry
from pospatch.methods._factored import Factored
from pospatch.methods._math import divided, longrope_parameters, standing
from pospatch.methods._options import number


@dataclass(frozen=True, kw_only=True)
class NTKMixed(Factored):
    """NTK-RoPE-mixed: each frequency is divided by a power that grows along the pairs and is `factor` at the last one.

    inv_freq[i] = w[i] * exp(-a * (i + 1) ** b); a = ln(factor) / (dim / 2) ** b

    Source: Su Jianlin, "Transformer upgrade path 11", kexue.fm/archives/9706 (2023).

    Args:
        factor: divisor of the lowest frequency, at least 1; the author's k = 12 for an 8-fold length.
        original_max_position_embeddings: trained length in tokens; None is the model's own. Only the reached length
            follows it.
        b: shape of the growth, in (0, 1]; 0.625 to 0.75 in the post.

    Raises:
        UnsupportedHost: the layer has no rotary encoding.
    """

    source: ClassVar[str] = "NTK-RoPE-mixed, kexue.fm/archives/9706"

    b: float = number(0.75, above=0.0, high=1.0)

    def divisors(self, geometry: Geometry) -> Tensor:
        """What each frequency is divided by, float32 (half,)."""
        half = standing(self.name, geometry).dim // 2
        pairs = torch.arange(1, half + 1, dtype=torch.float64, device="cpu")
        return (math.log(self.factor) * (pairs / half) ** self.b).exp().float()

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        rotation = standing(self.name, geometry)
        return divided(rotation, self.divisors(geometry)), rotation.attention_factor

    def rope_parameters(self, geometry: Geometry) -> dict[str, Any] | None:
        return longrope_parameters(geometry, self.divisors(geometry), 1.0, self.original(geometry))
