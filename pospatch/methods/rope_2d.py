from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.geometry import Geometry
from pospatch.methods._base import Weights
from pospatch.methods._grid import GridRotary
from pospatch.methods._options import number


@dataclass(frozen=True, kw_only=True)
class RoPE2D(GridRotary):
    """Axial 2-D RoPE: half of the pairs turn with the column of a patch, the other half with its row.

    f[k] = rope_theta ** (-4 * k / dim), k = 0 .. dim / 4 - 1
    angle = column * f[k] for pair k, row * f[k] for pair dim / 4 + k; column = t mod columns, row = t div columns

    Source: Rotary Position Embedding for Vision Transformer, arXiv 2403.13298, equations 7 and 8.

    Args:
        rope_theta: base of the frequencies, above 1; 100 in the paper.
        prefix: tokens before the first patch (class token, registers), which do not turn; None is what this model has there.
        columns: patches in a row; None reads it from the size of the images of each call.

    Departs: pairs are dimensions i and i + dim / 2, the authors' are 2i and 2i + 1.

    Raises:
        BadOption: head_dim is not a multiple of 4.
        UnsupportedHost: the model has no grid of patches.
    """

    source: ClassVar[str] = "RoPE for ViT (axial), arXiv 2403.13298, equations 7 and 8"

    rope_theta: float = number(100.0, above=1.0)

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        """f of one axis, in radians per patch, (head_dim / 4,)."""
        exponent = torch.arange(0, geometry.head_dim, 4, dtype=torch.float32, device="cpu") / geometry.head_dim
        return 1.0 / self.rope_theta**exponent, 1.0

    def angles(self, row: Tensor, column: Tensor, heads: int, weights: Weights, geometry: Geometry) -> Tensor:
        axis = self.frequencies(geometry)[0].to(row.device)
        return torch.cat((column[..., None] * axis, row[..., None] * axis), dim=-1)[:, None]
