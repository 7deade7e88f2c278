from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.geometry import Geometry
from pospatch.methods._axes import axial_angles, axial_frequencies, check_axes
from pospatch.methods._base import Rotary, Weights
from pospatch.methods._math import turn
from pospatch.methods._options import integer, number


@dataclass(frozen=True, kw_only=True)
class CayleySTRING(Rotary):
    """Cayley-STRING: RoPE in a learned orthogonal basis, which keeps it exactly relative, for tokens in a row or in space.

    q, k -> RoPE(n) P^T x, P = (I - S) (I + S)^-1, S = antisymmetric - antisymmetric^T
    axes above 1: n has so many coordinates, and RoPE is that of `rope_nd`

    Source: Learning the RoPEs: Better 2D and 3D Position Encodings with STRING, arXiv 2502.02562, section 3.2 (the
        other STRING is `string_shift`).

    Args:
        rope_theta: base of the frequencies, above 1. None keeps the host's, and is 10000 where it has none.
        axes: coordinates of a token, 1 to 8. More than one come with `pospatch.coordinates(model, where)`; without it each is
            the token's position.

    Departs: the outer P of R(n) = P RoPE(n) P^T is left out, since it cancels in every product of q and k. One P a
        layer, shared by its heads. It starts as the identity, so that on a host with this rotary encoding nothing
        changes at first (with one axis).

    Raises:
        BadOption: head_dim is odd or below 2 * axes on a host without a rotary encoding.
    """

    family: ClassVar[str] = "rotary"
    spectral: ClassVar[bool] = False
    source: ClassVar[str] = "Cayley-STRING, arXiv 2502.02562, section 3.2"

    rope_theta: float | None = number(None, above=1.0, optional=True)
    axes: int = integer(1, low=1, high=8)

    def numbers_taken(self) -> int:
        return self.axes

    def dim(self, geometry: Geometry) -> int:
        """Rotated dimensions of each head."""
        return geometry.rotation.dim if geometry.rotation else geometry.head_dim

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        check_axes(self.name, self.dim(geometry), self.axes)

    def weights(self, geometry: Geometry) -> dict[str, Tensor]:
        """antisymmetric: (dim, dim), of which only the antisymmetric part counts."""
        return {"antisymmetric": torch.zeros(self.dim(geometry), self.dim(geometry))}

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        theta = self.rope_theta or (geometry.rotation.theta if geometry.rotation else 10000.0)
        return axial_frequencies(theta, self.dim(geometry), self.axes), 1.0

    def rotate(
        self,
        x: Tensor,
        positions: Tensor,
        side: str,
        weights: Weights,
        geometry: Geometry,
        length: Tensor | None = None,
    ) -> Tensor:
        free, dim = weights["antisymmetric"].float(), self.dim(geometry)
        skew, one = free - free.T, torch.eye(dim, device=x.device)
        basis = torch.linalg.solve(one + skew, one - skew)  # both factors are functions of S, so they commute
        turned = torch.matmul(x[..., :dim].float(), basis)  # rows times P are P^T x
        angles = axial_angles(positions, self.frequencies(geometry)[0], self.axes)
        return torch.cat((turn(turned, angles).to(x.dtype), x[..., dim:]), dim=-1)
