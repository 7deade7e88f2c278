from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pospatch.geometry import Geometry
from pospatch.methods._base import Rotary, Weights
from pospatch.methods._options import number


@dataclass(frozen=True, kw_only=True)
class PoPE(Rotary):
    """Polar position embedding: content sets the length of each component, position alone its angle.

    logits[m, n] = scaling * sum_j softplus(q[m, j]) * softplus(k[n, j]) * cos((n - m) * inv_freq[j] + bias[h, j])
    inv_freq[j] = rope_theta ** (-j / head_dim), j = 0 .. head_dim - 1; bias in [-2 * pi, 0]

    Source: Decoupling the "What" and "Where" with Polar Coordinate Positional Embedding, arXiv 2509.10534, equations
        5 to 7. What x-transformers calls polar embedding is this method; it has no second name here.

    Args:
        rope_theta: base of the frequencies, above 1; 10000 in the paper.

    Departs: query heads that share a key share its bias. q and k become twice as wide (real and imaginary part),
        values stay.

    Raises:
        nothing of its own: any head_dim works, odd ones too.
    """

    family: ClassVar[str] = "rotary"
    spectral: ClassVar[bool] = False
    source: ClassVar[str] = "PoPE, arXiv 2509.10534, equations 5 to 7"

    rope_theta: float = number(10000.0, above=1.0)

    def weights(self, geometry: Geometry) -> dict[str, Tensor]:
        """bias: phases of the keys in radians, (kv_heads, head_dim), clamped to [-2 pi, 0]; zero at the start."""
        return {"bias": torch.zeros(geometry.kv_heads, geometry.head_dim)}

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        """One frequency for each dimension, (head_dim,)."""
        return 1.0 / self.rope_theta ** (torch.arange(geometry.head_dim, dtype=torch.float32) / geometry.head_dim), 1.0

    def rotate(
        self,
        x: Tensor,
        positions: Tensor,
        side: str,
        weights: Weights,
        geometry: Geometry,
        length: Tensor | None = None,
    ) -> Tensor:
        angles = positions[:, None, :, None].float() * self.frequencies(geometry)[0].to(x.device)
        if side == "key":
            bias = weights["bias"].float().clamp(-2 * torch.pi, 0.0)
            angles = angles + bias.repeat_interleave(x.shape[1] // geometry.kv_heads, dim=0)[:, None]
        size = softplus(x.float())
        return torch.cat((size * angles.cos(), size * angles.sin()), dim=-1).to(x.dtype)
