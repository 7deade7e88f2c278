"""Coordinates of image patches, counted row by row after the tokens that are no patches."""

from __future__ import annotations

from torch import Tensor

from pospatch.errors import BadOption, UnsupportedHost
from pospatch.geometry import Geometry

__all__ = ["check_grid", "coordinates", "hold_prefix", "prefix_of"]


def check_grid(name: str, geometry: Geometry) -> tuple[int, ...]:
    """The grid (rows, columns) of the layer's patches.

    Raises:
        UnsupportedHost: the model has none.
        BadOption: head_dim is not a multiple of 4: two axes, and two dimensions a pair.
    """
    if geometry.grid is None or len(geometry.grid) != 2:
        raise UnsupportedHost(f"{name} places patches of an image and this model has no 2-D grid (got {geometry.grid})")
    if geometry.head_dim % 4:
        raise BadOption(f"{name} gives each of two axes pairs; head_dim={geometry.head_dim} must be a multiple of 4")
    return geometry.grid


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


def hold_prefix(angles: Tensor, positions: Tensor, prefix: int) -> Tensor:
    """Angles (batch, heads or 1, length, half), zero where a token is no patch."""
    return angles.masked_fill((positions < prefix)[:, None, :, None], 0.0)
