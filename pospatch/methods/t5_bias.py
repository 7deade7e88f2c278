from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._base import Bias, Weights
from pospatch.methods._options import integer


@dataclass(frozen=True, kw_only=True)
class T5Bias(Bias):
    """T5's relative bias: one learned number for each head and each bucket of distance, buckets growing with distance.

    bias[h, m, n] = table[bucket(m - n), h]
    bucket(r) = r where r < exact, else exact + floor(ln(r / exact) / ln(max_distance / exact) * (buckets - exact)), at
    most buckets - 1, with exact = buckets / 2; two-sided attention gives each side half of num_buckets.

    Source: Exploring the Limits of Transfer Learning, arXiv 1910.10683, section 2.1; buckets as in T5's own code.

    Args:
        num_buckets: number of buckets, even, 4 to 65536; the paper has 32.
        max_distance: distance in tokens from which all share the last bucket; the paper has 128.

    Departs: one table a layer, where T5 shares that of the first; it starts at zero, so that the graft starts as no
        positions at all and learns from there. Added after the scaling by 1/sqrt(head_dim), which T5 does not have.

    Raises:
        BadOption: odd num_buckets, or max_distance not above the exact buckets.
    """

    source: ClassVar[str] = "T5, arXiv 1910.10683, section 2.1"

    num_buckets: int = integer(32, low=4, high=2**16)
    max_distance: int = integer(128, low=2)

    def check(self) -> None:
        if self.num_buckets % 2:
            raise BadOption(f"t5_bias: num_buckets={self.num_buckets} must be even")
        if self.max_distance <= self.num_buckets // 2:
            raise BadOption(
                f"t5_bias: max_distance={self.max_distance} must be above num_buckets / 2 = {self.num_buckets // 2}"
            )

    def weights(self, geometry: Geometry) -> dict[str, Tensor]:
        return {"table": torch.zeros(self.num_buckets, geometry.heads)}

    def profile(self, weights: Weights, geometry: Geometry) -> Callable[[Tensor], Tensor]:
        table = weights["table"].float()
        return lambda r: table[self.buckets(r, two_sided=not geometry.causal)]

    def buckets(self, distance: Tensor, two_sided: bool) -> Tensor:
        """Bucket of each distance m - n in tokens; int64, the shape of `distance`."""
        count = self.num_buckets // 2 if two_sided else self.num_buckets
        base = (distance < 0).long() * count if two_sided else torch.zeros_like(distance)
        r = distance.abs() if two_sided else distance.clamp(min=0)
        exact = count // 2
        # float32, truncated: other precisions move the edges of the buckets
        ratio = torch.log(r.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        far = (exact + (ratio * (count - exact)).long()).clamp(max=count - 1)
        return base + torch.where(r < exact, r, far)
