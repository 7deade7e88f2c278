from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._base import Fold, Weights
from pospatch.methods._options import integer

DIGIT = 256  # a digit below it, times any power of two, is exact in bfloat16; three digits reach 2**24 tokens


@dataclass(frozen=True, kw_only=True)
class ALiBi(Fold):
    """Attention with linear biases: a penalty that grows with distance, steeper in some heads than in others.

    bias[h, m, n] = -slope[h] * |m - n|
    slope[h] = 2 ** (-8 * (h + 1) / heads) for a power of two; otherwise the slopes of the largest power of two below,
    then every second one of twice that power.

    Where no query sees ahead it is enough to give -slope * (last - n), since softmax ignores what is constant in a row,
    and that is a dot product: columns -slope * (256, 256, 1) of q against the digits of last - n to base 256 of k, the
    first of them times 256.

    Source: Train Short, Test Long, arXiv 2108.12409, section 3; slopes as in the authors' repository.

    Args:
        biased_heads: number of heads that get a slope, the first ones, with the slopes of a layer of that many heads;
            the others see no distance. None is all of them.

    Departs: two-sided attention takes |m - n|, as Composer's BERT does; it does not fold and is added as a bias.

    Raises:
        BadOption: more biased heads than the layer has.
    """

    looks_back: ClassVar[bool] = True
    source: ClassVar[str] = "ALiBi, arXiv 2108.12409, section 3"

    biased_heads: int | None = integer(None, low=1, optional=True)

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        if self.biased_heads is not None and self.biased_heads > geometry.heads:
            raise BadOption(f"alibi: biased_heads={self.biased_heads} is more than this layer's {geometry.heads} heads")

    def slopes(self, geometry: Geometry) -> Tensor:
        """Slopes in nats per token, (heads,) float32; 0 for heads without a bias."""
        count = self.biased_heads or geometry.heads
        return torch.tensor(slopes(count) + [0.0] * (geometry.heads - count), dtype=torch.float32)

    def profile(self, weights: Weights, geometry: Geometry) -> Callable[[Tensor], Tensor]:
        slopes = self.slopes(geometry)
        return lambda r: -slopes.to(r.device) * r.abs().float()[:, None]

    def columns(
        self, query_positions: Tensor, key_positions: Tensor, weights: Weights, geometry: Geometry
    ) -> tuple[Tensor, Tensor]:
        slope = self.slopes(geometry).to(query_positions.device)
        q = -torch.stack((slope * DIGIT, slope * DIGIT, slope), dim=-1)[None, :, None, :]
        # counted from the end: small where it weighs
        back = key_positions.max(dim=1, keepdim=True).values - key_positions
        digits = (back // DIGIT**2 * DIGIT, back // DIGIT % DIGIT, back % DIGIT)
        return q.expand(1, -1, query_positions.shape[1], -1), torch.stack(digits, dim=-1)[:, None].float()


def slopes(heads: int) -> list[float]:
    """The paper's slopes for any number of heads.

    >>> slopes(4)
    [0.25, 0.0625, 0.015625, 0.00390625]
    """
    power = 1 << (heads.bit_length() - 1)
    first = [2.0 ** (-8.0 * (h + 1) / power) for h in range(power)]
    if power == heads:
        return first
    return first + [2.0 ** (-4.0 * (h + 1) / power) for h in range(0, 2 * (heads - power), 2)]
