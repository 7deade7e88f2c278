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


@dataclass(frozen=True, kw_only=True)
class KerpleLog(Bias):
    """KERPLE's logarithmic kernel: a penalty that grows with the logarithm of the distance, with a learned height and
    rate for each head.

    bias[h, m, n] = -p[h] * ln(1 + a[h] * |m - n|), p > 0, a > 0

    Source: KERPLE, arXiv 2205.09921, section 4 (logarithmic variant).

    Args:
        parametrization: how p and a stay positive. "softplus" learns raw numbers and takes 0.01 + softplus of them;
            "clamp" learns p and a themselves and raises what is below 0.01, as the authors' code does.
        seed: of the start, p uniform in (0, 2) and a in (0, 1) as the authors draw them; layers differ.

    Departs: the authors clamp the parameters in place at each forward; "clamp" clamps their values and passes gradients
        through, since a parameter must not change within a forward. The kernel has no start at zero: p is at least 0.01.
    """

    source: ClassVar[str] = "KERPLE (log), arXiv 2205.09921, section 4"

    parametrization: str = choice("softplus", "softplus", "clamp")
    seed: int = integer(0, low=0)

    def weights(self, geometry: Geometry) -> dict[str, Tensor]:
        """p and a of each head, (heads,); raw where the parametrization is "softplus"."""
        return kernel_start(geometry, self.seed, self.parametrization, {"p": 2.0, "a": 1.0})

    def profile(self, weights: Weights, geometry: Geometry) -> Callable[[Tensor], Tensor]:
        p, a = (at_least(weights[name], self.parametrization) for name in ("p", "a"))
        return lambda r: -p * torch.log1p(a * r.abs().float()[:, None])
