"""Coordinates of image patches, counted row by row after the tokens that are no patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pospatch.errors import BadOption, UnsupportedHost
from pospatch.geometry import Geometry
from pospatch.methods._base import Rotary, Weights
from pospatch.methods._math import turn
from pospatch.methods._options import integer

__all__ = ["GridRotary", "coordinates", "prefix_of"]


@dataclass(frozen=True, kw_only=True)
class GridRotary(Rotary):
    """Rotations by the row and the column of an image's patch; tokens before the first patch do not turn."""

    family: ClassVar[str] = "rotary"
    spectral: ClassVar[bool] = False

    prefix: int | None = integer(None, low=0, optional=True)
    columns: int | None = integer(None, optional=True)

    @property
    def reads_grid(self) -> bool:
        return True

    def numbers_taken(self) -> int:
        return 0  # it makes coordinates of the order of the patches itself

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        if geometry.grid is None or len(geometry.grid) != 2:
            raise UnsupportedHost(
                f"{self.name} places patches of an image and this model has no 2-D grid (got {geometry.grid})"
            )
        if geometry.head_dim % 4:
            raise BadOption(
                f"{self.name} gives each of two axes pairs; head_dim={geometry.head_dim} must be a multiple of 4"
            )

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
        angles = self.angles(row, column, x.shape[1], weights, geometry)
        return turn(x, angles.masked_fill((positions < prefix)[:, None, :, None], 0.0))

    def angles(self, row: Tensor, column: Tensor, heads: int, weights: Weights, geometry: Geometry) -> Tensor:
        """Angles in radians (batch, heads or 1, length, head_dim / 2) for rows and columns (batch, length)."""
        raise NotImplementedError


def prefix_of(given: int | None, geometry: Geometry) -> int:
    """Tokens before the first patch: those of the option, else the model's own."""
    return geometry.prefix if given is None else given


def coordinates(
    positions: Tensor, geometry: Geometry, prefix: int, columns: int | None = None
) -> tuple[Tensor, Tensor]:
    """(row, column) of each patch, float32 of the shape of positions; what stands before the patches gets (0, 0)."""
    assert geometry.grid is not None
    columns = columns or geometry.grid[1]
    patch = (positions - prefix).clamp(min=0)
    return (patch // columns).float(), (patch % columns).float()
