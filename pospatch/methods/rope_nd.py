from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pospatch.geometry import Geometry
from pospatch.methods._axes import axial_angles, axial_frequencies, check_axes
from pospatch.methods._base import Rotary, Weights
from pospatch.methods._math import turn
from pospatch.methods._options import integer, number


@dataclass(frozen=True, kw_only=True)
class RoPEND(Rotary):
    """RoPE in n dimensions: a token has `axes` coordinates, any numbers, and each turns its own share of the pairs.

    angle[a * share + k] = coordinate[a] * rope_theta ** (-k / share), share = dim // (2 * axes), k = 0 .. share - 1

    Pairs that are left over do not turn.

    Source: Learning the RoPEs: Better 2D and 3D Position Encodings with STRING, arXiv 2502.02562, section 2.2 (RoPE in d
        dimensions); with two axes the rotation of `rope_2d`, for coordinates that the caller gives.

    Args:
        axes: coordinates of a token, 1 to 8.
        rope_theta: base of the frequencies, above 1. The fastest pair turns by one radian a unit, so scale coordinates to
            where neighbours are about one unit apart.

    Coordinates come with `pospatch.coordinates(model, where)`; without them each is the token's position.

    Raises:
        BadOption: head_dim is odd or below 2 * axes.
    """

    family: ClassVar[str] = "rotary"
    spectral: ClassVar[bool] = False
    source: ClassVar[str] = "RoPE in n dimensions, arXiv 2502.02562, section 2.2"

    axes: int = integer(2, low=1, high=8)
    rope_theta: float = number(100.0, above=1.0)

    def numbers_taken(self) -> int:
        return self.axes

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        check_axes(self.name, geometry.head_dim, self.axes)

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        """Those of one axis, radians per unit."""
        return axial_frequencies(self.rope_theta, geometry.head_dim, self.axes), 1.0

    def rotate(
        self,
        x: Tensor,
        positions: Tensor,
        side: str,
        weights: Weights,
        geometry: Geometry,
        length: Tensor | None = None,
    ) -> Tensor:
        return turn(x, axial_angles(positions, self.frequencies(geometry)[0], self.axes))
