from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.geometry import Geometry
from pospatch.methods._base import Weights
from pospatch.methods._grid import GridRotary
from pospatch.methods._options import integer, number


@dataclass(frozen=True, kw_only=True)
class DINOv3RoPE(GridRotary):
    """DINOv3's 2-D RoPE: coordinates of patch centres run from -1 to 1 whatever the resolution.

    y = 2 * (row + 0.5) / rows - 1, x = 2 * (column + 0.5) / columns - 1
    angle = 2 * pi * y * f[k] for pair k, 2 * pi * x * f[k] for pair dim / 4 + k; f[k] = rope_theta ** (-4 * k / dim)

    Source: DINOv3, arXiv 2508.10104, section 3.2, and transformers' `dinov3_vit`.

    Args:
        rope_theta: base of the frequencies, above 1; 100 in the paper.
        prefix: tokens before the first patch (class token, registers), which do not turn; None is what this model has there.
        rows, columns: the grid of patches; None reads it from the size of the images of each call.

    Departs: coordinates are not shifted, jittered or rescaled at random in training.

    Raises:
        BadOption: head_dim is not a multiple of 4.
        UnsupportedHost: the model has no grid of patches.
    """

    source: ClassVar[str] = "DINOv3, arXiv 2508.10104, section 3.2"

    rope_theta: float = number(100.0, above=1.0)
    rows: int | None = integer(None, optional=True)

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        """f of one axis, (head_dim / 4,)."""
        exponent = torch.arange(0, 1, 4 / geometry.head_dim, dtype=torch.float32, device="cpu")
        return 1 / self.rope_theta**exponent, 1.0

    def angles(self, row: Tensor, column: Tensor, heads: int, weights: Weights, geometry: Geometry) -> Tensor:
        assert geometry.grid is not None  # or there were no rows and columns
        rows, columns = self.rows or geometry.grid[0], self.columns or geometry.grid[1]
        y, x = 2.0 * ((row + 0.5) / rows) - 1.0, 2.0 * ((column + 0.5) / columns) - 1.0
        axis = self.frequencies(geometry)[0].to(row.device)
        angles = 2 * math.pi * torch.stack((y, x), dim=-1)[..., None] * axis
        return angles.flatten(-2)[:, None]
