from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._base import Rotary, Weights
from pospatch.methods._math import rotary_inv_freq, turn
from pospatch.methods._options import number


@dataclass(frozen=True, kw_only=True)
class CayleySTRING(Rotary):
    """Cayley-STRING: RoPE in a learned orthogonal basis, which keeps it exactly relative.

    q, k -> RoPE(n) P^T x, P = (I - S) (I + S)^-1, S = antisymmetric - antisymmetric^T

    Source: Learning the RoPEs: Better 2D and 3D Position Encodings with STRING, arXiv 2502.02562, section 3.2 (the
        other STRING is `string_shift`).

    Args:
        rope_theta: base of the frequencies, above 1. None keeps the host's, and is 10000 where it has none.

    Departs: the outer P of R(n) = P RoPE(n) P^T is left out, since it cancels in every product of q and k. One P a
        layer, shared by its heads. It starts as the identity, so that on a host with this rotary encoding nothing
        changes at first. 1-D.

    Raises:
        BadOption: head_dim is odd on a host without a rotary encoding.
    """

    family: ClassVar[str] = "rotary"
    spectral: ClassVar[bool] = False
    source: ClassVar[str] = "Cayley-STRING, arXiv 2502.02562, section 3.2"

    rope_theta: float | None = number(None, above=1.0, optional=True)

    def dim(self, geometry: Geometry) -> int:
        """Rotated dimensions of each head."""
        return geometry.rotation.dim if geometry.rotation else geometry.head_dim

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        if self.dim(geometry) % 2:
            raise BadOption(f"{self.name} turns pairs; head_dim={geometry.head_dim} is odd and must be even")

    def weights(self, geometry: Geometry) -> dict[str, Tensor]:
        """antisymmetric: (dim, dim), of which only the antisymmetric part counts."""
        return {"antisymmetric": torch.zeros(self.dim(geometry), self.dim(geometry))}

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        theta = self.rope_theta or (geometry.rotation.theta if geometry.rotation else 10000.0)
        return rotary_inv_freq(theta, self.dim(geometry)), 1.0

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
        angles = positions[:, None, :, None].float() * self.frequencies(geometry)[0].to(x.device)
        return torch.cat((turn(turned, angles).to(x.dtype), x[..., dim:]), dim=-1)
