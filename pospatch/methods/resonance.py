from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pospatch.geometry import Geometry
from pospatch.methods._factored import Factored
from pospatch.methods._math import (
    divided,
    longrope_parameters,
    standing,
    standing_inv_freq,
    yarn_amplitude,
    yarn_divisors,
)
from pospatch.methods._options import number


@dataclass(frozen=True, kw_only=True)
class Resonance(Factored):
    """Resonance RoPE: wavelengths are rounded to whole tokens, so that no pair ever meets an angle it has not seen.

    inv_freq[i] = 2 * pi / round(2 * pi / w[i])

    With a factor above 1, w are YaRN's frequencies and amplitude = 0.1 * ln(factor) + 1 ("Resonance YaRN").

    Source: Resonance RoPE: Improving Context Length Generalization of Large Language Models, arXiv 2403.00071,
        section 4.

    Args:
        factor: wanted length / trained length, at least 1; 1 rounds the frequencies that stand there.
        original_max_position_embeddings: trained length in tokens; None is the model's own.

    Departs: a wavelength never rounds to 0.

    Raises:
        UnsupportedHost: the layer has no rotary encoding.
    """

    family: ClassVar[str] = "rotary"
    source: ClassVar[str] = "Resonance RoPE, arXiv 2403.00071, section 4"

    factor: float = number(1.0, low=1.0)

    def divisors(self, geometry: Geometry) -> Tensor:
        """What each frequency is divided by, float32 (half,)."""
        rotation = standing(self.name, geometry)
        scaled = yarn_divisors(rotation, self.original(geometry), self.factor)
        wavelength = 2 * math.pi / standing_inv_freq(rotation).double()
        rounded = (wavelength * scaled.double()).round().clamp(min=1.0)
        return torch.where(wavelength.isinf(), scaled.double(), rounded / wavelength).float()

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        rotation = standing(self.name, geometry)
        return divided(rotation, self.divisors(geometry)), rotation.attention_factor * yarn_amplitude(self.factor)

    def rope_parameters(self, geometry: Geometry) -> dict[str, Any] | None:
        amplitude = yarn_amplitude(self.factor)
        return longrope_parameters(geometry, self.divisors(geometry), amplitude, self.original(geometry))
