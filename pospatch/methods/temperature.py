from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.geometry import Geometry
from pospatch.methods._base import QueryScale
from pospatch.methods._options import integer, number


@dataclass(frozen=True, kw_only=True)
class Temperature(QueryScale):
    """Llama 4's query temperature: queries grow slowly in steps of `floor_scale` tokens.

    factor[m] = 1 + attn_scale * ln(1 + floor((m + 1) / floor_scale))

    Source: Llama 4 (2025), `attn_temperature_tuning` in transformers; scalable softmax, arXiv 2501.19399. Llama 4
        uses it in the layers without positions: layers="every:4".

    Args:
        attn_scale: growth, at least 0; 0.1 in Llama 4, 0 changes nothing.
        floor_scale: tokens of a step, at least 1; 8192 in Llama 4.
    """

    source: ClassVar[str] = "Llama 4 attention temperature (2025); arXiv 2501.19399"

    attn_scale: float = number(0.1, low=0.0)
    floor_scale: int = integer(8192)

    def factor_at(self, query_positions: Tensor, geometry: Geometry) -> Tensor:
        steps = torch.floor((query_positions.float() + 1.0) / self.floor_scale)
        return 1.0 + self.attn_scale * torch.log1p(steps)
