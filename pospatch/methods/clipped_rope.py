from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pospatch.geometry import Geometry
from pospatch.methods._base import Scaling
from pospatch.methods._math import divided, longrope_parameters, standing
from pospatch.methods._options import choice, number


@dataclass(frozen=True, kw_only=True)
class ClippedRoPE(Scaling):
    """Clipped RoPE: the lowest frequencies, whose period training never completed, fade to zero.

    inv_freq[half - count + j] = w[half - count + j] * 0.5 * (1 + cos(pi * j / (count - 1))), j = 0 .. count - 1
    count = round(fraction * half); clip="hard" sets them to 0 instead

    Source: CoPE: Clipped RoPE as a scalable free lunch for long context LLMs, arXiv 2602.05258 (the contextual CoPE of
        arXiv 2405.18719 is `cope`).

    Args:
        fraction: share of the pairs that fade, in [0, 1]; the authors' 20 of 64 is 0.3125. 0 changes nothing.
        clip: "soft" is the cosine, "hard" is zero.

    Departs: the authors' code always fades 20 pairs; here their number follows the rotated dimensions.

    Raises:
        UnsupportedHost: the layer has no rotary encoding.
    """

    family: ClassVar[str] = "rotary"
    source: ClassVar[str] = "Clipped RoPE, arXiv 2602.05258"

    fraction: float = number(0.3125, low=0.0, high=1.0)
    clip: str = choice("soft", "soft", "hard")

    def mask(self, half: int) -> Tensor:
        """What each frequency is multiplied by, float32 (half,)."""
        count = round(self.fraction * half)
        mask = torch.ones(half, dtype=torch.float64, device="cpu")
        if count:
            turns = torch.linspace(0, torch.pi, count, dtype=torch.float64, device="cpu")
            mask[half - count :] = 0.0 if self.clip == "hard" else 0.5 * (1 + turns.cos())
        return mask.float()

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        rotation = standing(self.name, geometry)
        return divided(rotation, 1.0 / self.mask(rotation.dim // 2)), rotation.attention_factor

    def rope_parameters(self, geometry: Geometry) -> dict[str, Any] | None:
        """None wherever a frequency is 0, which transformers cannot say: that is, unless `fraction` clips nothing."""
        rotation = standing(self.name, geometry)
        return longrope_parameters(geometry, 1.0 / self.mask(rotation.dim // 2), 1.0, geometry.length)
