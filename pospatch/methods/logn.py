from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.geometry import Geometry
from pospatch.methods._base import QueryScale
from pospatch.methods._options import integer


@dataclass(frozen=True, kw_only=True)
class LogN(QueryScale):
    """log-n attention: queries beyond the trained length grow with the log of their position, so that attention
    stays sharp.

    factor[m] = max(1, ln(m + 1) / ln(L))

    Source: Su Jianlin, kexue.fm/archives/8823 (2021), as Qwen uses it.

    Args:
        original_max_position_embeddings: L, the trained length in tokens, at least 2; None is the model's own.
    """

    source: ClassVar[str] = "log-n scaling, kexue.fm/archives/8823"

    original_max_position_embeddings: int | None = integer(None, low=2, optional=True)

    def factor_at(self, query_positions: Tensor, geometry: Geometry) -> Tensor:
        trained = self.original_max_position_embeddings or max(2, geometry.length)
        return (torch.log(query_positions.float() + 1) / math.log(trained)).clamp(min=1.0)
