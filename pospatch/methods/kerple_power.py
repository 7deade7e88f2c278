from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.geometry import Geometry
from pospatch.methods._base import Bias, Weights
from pospatch.methods._kerple import at_least, kernel_start
from pospatch.methods._options import choice, integer

HIGHEST = 2.0  # a power above it gives no conditionally positive definite kernel


@dataclass(frozen=True, kw_only=True)
class KerplePower(Bias):
    """KERPLE's power kernel: a penalty that grows with a learned power of the distance; the power 1 is ALiBi with learned
    slopes.

    bias[h, m, n] = -a[h] * |m - n| ** p[h], a > 0, 0 < p <= 2

    Source: KERPLE, arXiv 2205.09921, section 4 (power variant).

    Args:
        parametrization: how a and p stay in range. "softplus" learns raw numbers and takes 0.01 + softplus for a,
            0.01 + 1.99 * sigmoid for p; "clamp" learns a and p themselves and moves what is outside to the nearest bound,
            as the authors' code does.
        seed: of the start, p uniform in (0, 2) and a in (0, 1) as the authors draw them; layers differ.

    Departs: the authors clamp the parameters in place at each forward; "clamp" clamps their values and passes gradients
        through, since a parameter must not change within a forward. The kernel has no start at zero: a is at least 0.01.
    """

    source: ClassVar[str] = "KERPLE (power), arXiv 2205.09921, section 4"

    parametrization: str = choice("softplus", "softplus", "clamp")
    seed: int = integer(0, low=0)

    def weights(self, geometry: Geometry) -> dict[str, Tensor]:
        """a and p of each head, (heads,); raw where the parametrization is "softplus"."""
        return kernel_start(geometry, self.seed, self.parametrization, {"p": 2.0, "a": 1.0}, bounded={"p": HIGHEST})

    def profile(self, weights: Weights, geometry: Geometry) -> Callable[[Tensor], Tensor]:
        a = at_least(weights["a"], self.parametrization)
        p = at_least(weights["p"], self.parametrization, HIGHEST)

        def kernel(r: Tensor) -> Tensor:
            r = r.abs().float()[:, None]
            grown = torch.exp(p * torch.log(r.clamp(min=1.0)))  # the derivative of 0 ** p would be NaN
            return -a * grown.masked_fill(r == 0, 0.0)

        return kernel
