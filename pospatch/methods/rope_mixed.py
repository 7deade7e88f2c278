from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.geometry import Geometry
from pospatch.methods._base import Rotary, Weights
from pospatch.methods._grid import check_grid, coordinates, hold_prefix, prefix_of
from pospatch.methods._math import turn
from pospatch.methods._options import integer, number


@dataclass(frozen=True, kw_only=True)
class RoPEMixed(Rotary):
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

    family: ClassVar[str] = "rotary"
    spectral: ClassVar[bool] = False
    source: ClassVar[str] = "RoPE for ViT (mixed), arXiv 2403.13298, equation 12"

    rope_theta: float = number(10.0, above=1.0)
    prefix: int | None = integer(None, low=0, optional=True)
    columns: int | None = integer(None, optional=True)
    seed: int = integer(0, low=0)

    @property
    def reads_grid(self) -> bool:
        return True

    def numbers_taken(self) -> int:
        return 0  # it makes coordinates of the order of the patches itself

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        check_grid(self.name, geometry)

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

    def rotate(
        self,
        x: Tensor,
        positions: Tensor,
        side: str,
        weights: Weights,
        geometry: Geometry,
        length: Tensor | None = None,
    ) -> Tensor:
        prefix = prefix_of(self.prefix, geometry)
        row, column = coordinates(positions, geometry, prefix, self.columns)
        shared = x.shape[1] // geometry.kv_heads
        frequencies = weights["frequencies"].float().repeat_interleave(shared, dim=1)[:, None, :, None]
        angles = column[:, None, :, None] * frequencies[0] + row[:, None, :, None] * frequencies[1]
        return turn(x, hold_prefix(angles, positions, prefix))
