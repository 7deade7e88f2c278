from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.geometry import Geometry
from pospatch.methods._base import Weights
from pospatch.methods._grid import GridRotary
from pospatch.methods._options import integer, number


@dataclass(frozen=True, kw_only=True)
class RoPEMixed(GridRotary):
    """Mixed 2-D RoPE: each pair turns with a learned combination of column and row, so that it can follow any
    direction.

    angle[h, i] = column * frequencies[0, h, i] + row * frequencies[1, h, i]

    Source: Rotary Position Embedding for Vision Transformer, arXiv 2403.13298, equation 12.

    Args:
        rope_theta: base of the magnitudes at the start, above 1; 10 in the paper.
        prefix: tokens before the first patch (class token, registers), which do not turn; None is what this model has there.
        columns: patches in a row; None reads it from the size of the images of each call.
        seed: of the random direction that each head starts with; layers differ.

    Departs: query heads that share a key share their frequencies. Train them without weight decay, as the authors do.

    Raises:
        BadOption: head_dim is not a multiple of 4.
        UnsupportedHost: the model has no grid of patches.
    """

    source: ClassVar[str] = "RoPE for ViT (mixed), arXiv 2403.13298, equation 12"

    rope_theta: float = number(10.0, above=1.0)
    seed: int = integer(0, low=0)

    def weights(self, geometry: Geometry) -> dict[str, Tensor]:
        """frequencies: (2, kv_heads, head_dim / 2) radians per patch, for column and row."""
        exponent = torch.arange(0, geometry.head_dim, 4, dtype=torch.float32, device="cpu") / geometry.head_dim
        magnitude = 1.0 / self.rope_theta**exponent
        generator = torch.Generator("cpu").manual_seed(self.seed * 100_003 + geometry.layer)
        direction = torch.rand(geometry.kv_heads, 1, generator=generator, device="cpu") * 2 * torch.pi
        direction = direction.expand(-1, len(magnitude))
        both = torch.cat((direction, direction + torch.pi / 2), dim=-1)
        magnitude = torch.cat((magnitude, magnitude))
        return {"frequencies": torch.stack((magnitude * both.cos(), magnitude * both.sin()))}

    def angles(self, row: Tensor, column: Tensor, heads: int, weights: Weights, geometry: Geometry) -> Tensor:
        shared = heads // geometry.kv_heads
        frequencies = weights["frequencies"].float().repeat_interleave(shared, dim=1)[:, None, :, None]
        return column[:, None, :, None] * frequencies[0] + row[:, None, :, None] * frequencies[1]
