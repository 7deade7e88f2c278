from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.errors import UnsupportedHost
from pospatch.geometry import Geometry
from pospatch.methods._base import Embedding, Weights
from pospatch.methods._options import choice, flag, integer, number


@dataclass(frozen=True, kw_only=True)
class Sinusoidal(Embedding):
    """Fixed sines and cosines of position, in geometrically spaced wavelengths.

    "interleaved": table[n, 2i] = sin(n * base ** (-2i / width)), table[n, 2i + 1] = cos(the same)
    "half":        sines in the first half of the width, cosines in the second
    "whisper":     as "half", with frequencies exp(-i * ln(base) / (width / 2 - 1))

    Source: Attention Is All You Need, arXiv 1706.03762, section 3.5; "half" as in Marian, Pegasus and XGLM; "whisper" as
        in arXiv 2212.04356.

    Args:
        length: rows in tokens; None is the trained length.
        layout: which of the three.
        scale: factor on the vectors, to match the size of the host's embeddings, above 0; None is 1, and width ** -0.5
            where it is learned.
        learned_scale: True makes the scale one learned number, which then starts at `scale`; the sines stay fixed.
        base: the paper's 10000.

    Departs: the paper multiplies the token embeddings by sqrt(width) instead of making the sines smaller.

    Raises:
        UnsupportedHost: odd width.
    """

    family: ClassVar[str] = "absolute"
    source: ClassVar[str] = "Attention Is All You Need, arXiv 1706.03762, section 3.5"
    fixed: ClassVar[bool] = True

    length: int | None = integer(None, low=2, high=2**22, optional=True)
    layout: str = choice("interleaved", "interleaved", "half", "whisper")
    scale: float | None = number(None, above=0.0, high=1e6, optional=True)
    learned_scale: bool = flag(False)
    base: float = number(10000.0, above=1.0, high=1e12)

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        if geometry.width % 2 or geometry.width < 4:
            raise UnsupportedHost(f"sinusoidal: width {geometry.width} must be even and at least 4")

    def rows(self, geometry: Geometry) -> int:
        return self.length or geometry.length

    def table(self, geometry: Geometry) -> Tensor:
        half = geometry.width // 2
        steps = half - 1 if self.layout == "whisper" else half
        index = torch.arange(half, dtype=torch.float64)
        angles = torch.arange(self.rows(geometry), dtype=torch.float64)[:, None]
        angles = angles * torch.exp(-index * math.log(self.base) / steps)
        parts = (angles.sin(), angles.cos())
        table = torch.stack(parts, dim=-1).flatten(1) if self.layout == "interleaved" else torch.cat(parts, dim=-1)
        return (table if self.learned_scale else table * (self.scale or 1.0)).float()

    def weights(self, geometry: Geometry) -> dict[str, Tensor]:
        start = self.scale or geometry.width**-0.5
        return {"scale": torch.tensor([start])} if self.learned_scale else {}

    def vectors(self, rows: Tensor, weights: Weights) -> Tensor:
        return rows * weights["scale"]
