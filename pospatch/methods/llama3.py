from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._factored import Factored
from pospatch.methods._math import native_parameters, standing, standing_inv_freq
from pospatch.methods._options import number


@dataclass(frozen=True, kw_only=True)
class Llama3(Factored):
    """Llama 3.1 scaling: long wavelengths are divided by the factor, short ones stay, those between are blended.

    wavelength[i] = 2 * pi / w[i]; smooth = (L / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
    inv_freq[i] = w[i] / factor where wavelength > L / low_freq_factor; w[i] where wavelength < L / high_freq_factor;
    else (1 - smooth) * w[i] / factor + smooth * w[i]

    Source: The Llama 3 Herd of Models, arXiv 2407.21783, and Meta's llama-models `apply_scaling`.

    Args:
        factor: divisor of the low frequencies, at least 1; 8 in Llama 3.1, 32 in Llama 3.2.
        original_max_position_embeddings: L, the trained length in tokens; None is the model's own. 8192 in Llama 3.
        low_freq_factor: turns over L below which a pair is divided in full, 1 in Llama 3.
        high_freq_factor: turns over L above which a pair stays, 4 in Llama 3.

    Raises:
        BadOption: low_freq_factor is not below high_freq_factor.
        UnsupportedHost: the layer has no rotary encoding.
    """

    source: ClassVar[str] = "Llama 3, arXiv 2407.21783; llama-models apply_scaling"

    low_freq_factor: float = number(1.0, above=0.0)
    high_freq_factor: float = number(4.0, above=0.0)

    def check(self) -> None:
        if self.low_freq_factor >= self.high_freq_factor:
            raise BadOption(
                f"{self.name}: low_freq_factor={self.low_freq_factor:g} must be below "
                f"high_freq_factor={self.high_freq_factor:g}"
            )

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        rotation = standing(self.name, geometry)
        trained, low, high = self.original(geometry), self.low_freq_factor, self.high_freq_factor
        inv_freq = standing_inv_freq(rotation)
        wavelength = 2 * math.pi / inv_freq
        long, short = wavelength > trained / low, wavelength < trained / high
        scaled = torch.where(long, inv_freq / self.factor, inv_freq)
        smooth = (trained / wavelength - low) / (high - low)
        blended = (1 - smooth) * scaled / self.factor + smooth * scaled
        return torch.where(~short & ~long, blended, scaled), rotation.attention_factor

    def rope_parameters(self, geometry: Geometry) -> dict[str, Any] | None:
        return native_parameters(
            "llama3",
            geometry,
            factor=self.factor,
            original_max_position_embeddings=self.original(geometry),
            low_freq_factor=self.low_freq_factor,
            high_freq_factor=self.high_freq_factor,
        )
