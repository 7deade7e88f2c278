from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._factored import Factored
from pospatch.methods._math import divided, longrope_parameters, ntk_divisors, standing, yarn_ramp
from pospatch.methods._options import number


@dataclass(frozen=True, kw_only=True)
class NTKByParts(Factored):
    """NTK-by-parts: low frequencies are interpolated, high ones stay, NTK-aware ones lie between, with two ramps.

    mixed = (w / factor) * (1 - b) + ntk * b; inv_freq = mixed * (1 - g) + w * g
    b = 1 - ramp(beta_0, beta_1), g = 1 - ramp(gamma_0, gamma_1), ramps over turns in L tokens as in `yarn`

    Source: bloc97, "NTK-by-parts" (2023), code of arXiv 2309.00071; section 3.2 there tells a simpler form, which
        `yarn` has.

    Args:
        factor: wanted length / trained length, at least 1.
        original_max_position_embeddings: L, the trained length in tokens; None is the model's own.
        beta_0, beta_1: turns over L between which interpolation passes to NTK; 1.25 and 0.75 in the code.
        gamma_0, gamma_1: turns over L between which NTK passes to the trained frequencies; 16 and 2 in the code.

    Raises:
        BadOption: beta_0 is not above beta_1, or gamma_0 not above gamma_1.
        UnsupportedHost: the layer has no rotary encoding.
    """

    source: ClassVar[str] = "NTK-by-parts (bloc97, 2023); arXiv 2309.00071, section 3.2"

    beta_0: float = number(1.25, above=0.0)
    beta_1: float = number(0.75, above=0.0)
    gamma_0: float = number(16.0, above=0.0)
    gamma_1: float = number(2.0, above=0.0)

    def check(self) -> None:
        for name in ("beta", "gamma"):
            first, second = getattr(self, f"{name}_0"), getattr(self, f"{name}_1")
            if first <= second:
                raise BadOption(f"{self.name}: {name}_0={first:g} must be above {name}_1={second:g}")

    def divisors(self, geometry: Geometry) -> Tensor:
        """What each frequency is divided by, float32 (half,)."""
        rotation, trained = standing(self.name, geometry), self.original(geometry)
        beta = 1 - yarn_ramp(rotation, trained, self.beta_0, self.beta_1, True).double()
        gamma = 1 - yarn_ramp(rotation, trained, self.gamma_0, self.gamma_1, True).double()
        mixed = (1 - beta) / self.factor + beta / ntk_divisors(rotation.dim, self.factor)
        return (1.0 / (mixed * (1 - gamma) + gamma)).float()

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        rotation = standing(self.name, geometry)
        return divided(rotation, self.divisors(geometry)), rotation.attention_factor

    def rope_parameters(self, geometry: Geometry) -> dict[str, Any] | None:
        return longrope_parameters(geometry, self.divisors(geometry), 1.0, self.original(geometry))
