from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._base import Bias, Weights
from pospatch.methods._options import integer, number


@dataclass(frozen=True, kw_only=True)
class Sandwich(Bias):
    """Sandwich: the inner product of two sinusoidal position vectors as a bias, flatter in later heads; no parameters.

    bias[h, m, n] = (heads / (8 * (h + 1))) * sum over i = 1 .. dim / 2 of cos((m - n) * w[i])
    w[i] = rope_theta ** (-2 * i / dim)

    It is also a dot product of `dim` columns, since cos(a - b) = cos a * cos b + sin a * sin b; heads of 64 would grow to 192
    numbers for it, which costs more than adding the bias, and bfloat16 would round the columns.

    Source: Dissecting Transformer Length Extrapolation, arXiv 2212.10356, section 5; heads as in its appendix, which divides
    the sum by 8 * (h + 1) / heads.

    Args:
        dim: size of the sinusoidal vectors in numbers, even, 2 to 4096; 128 in the paper.
        rope_theta: base of the frequencies, above 1; 10000 in the paper.

    Departs: nothing; the sum is even in m - n, so that two-sided attention takes it as it is.

    Raises:
        BadOption: odd dim.
    """

    source: ClassVar[str] = "Sandwich, arXiv 2212.10356, section 5"

    dim: int = integer(128, low=2, high=4096)
    rope_theta: float = number(10000.0, above=1.0)

    def check(self) -> None:
        if self.dim % 2:
            raise BadOption(f"sandwich: dim={self.dim} must be even, a cosine and a sine for each frequency")

    def frequencies(self) -> Tensor:
        """w in radians per token, float32 (dim / 2,)."""
        i = torch.arange(1, self.dim // 2 + 1, dtype=torch.float32, device="cpu")
        return 1.0 / self.rope_theta ** (2 * i / self.dim)

    def strengths(self, geometry: Geometry) -> Tensor:
        """Factor of each head on the sum, float32 (heads,)."""
        return geometry.heads / (8.0 * torch.arange(1, geometry.heads + 1, dtype=torch.float32, device="cpu"))

    def total(self, distance: Tensor) -> Tensor:
        """The sum of cosines for distances in tokens, float32 of their shape."""
        angles = distance[..., None].float() * self.frequencies().to(distance.device)
        return angles.cos().sum(dim=-1)

    def profile(self, weights: Weights, geometry: Geometry) -> Callable[[Tensor], Tensor]:
        strengths = self.strengths(geometry)
        return lambda r: self.total(r)[:, None] * strengths.to(r.device)
