from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._base import Rotary
from pospatch.methods._math import rotary_inv_freq, standing_inv_freq
from pospatch.methods._options import integer, number


@dataclass(frozen=True, kw_only=True)
class RNoPE(Rotary):
    """RNoPE: every k-th layer has no positions, the others a rotary encoding.

    inv_freq[i] = 0 where (layer + 1) % every == 0; elsewhere what stands there, or rope_theta ** (-2 * i / dim)

    Source: Rope to Nope and Back Again: A New Hybrid Attention Strategy, arXiv 2501.18795; Llama 4; SmolLM3.

    Args:
        every: k, at least 1; 4 in Llama 4 and SmolLM3, 1 is no position in any layer.
        rope_theta: base of the frequencies, above 1. None keeps the host's frequencies, and is 10000 where it has none.

    Departs: the sliding windows of the paper are the host's own affair.

    Raises:
        BadOption: `every` is above the number of layers, or head_dim is odd on a host without a rotary encoding.
    """

    family: ClassVar[str] = "scaling"
    spectral: ClassVar[bool] = False
    source: ClassVar[str] = "RNoPE, arXiv 2501.18795"

    every: int = integer(4)
    rope_theta: float | None = number(None, above=1.0, optional=True)

    @classmethod
    def example(cls, options: dict[str, Any], geometry: Geometry) -> dict[str, Any]:
        return {**options, "every": min(4, geometry.layers)}

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        if self.every > geometry.layers:
            raise BadOption(
                f"{self.name}: every={self.every} chooses none of the {geometry.layers} layers; give a lower one"
            )
        if geometry.rotation is None and geometry.head_dim % 2:
            raise BadOption(f"{self.name} turns pairs; head_dim={geometry.head_dim} is odd and must be even")

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        rotation, amplitude = geometry.rotation, 1.0
        if rotation is None or self.rope_theta is not None:
            inv_freq = rotary_inv_freq(self.rope_theta or 10000.0, rotation.dim if rotation else geometry.head_dim)
        else:
            inv_freq, amplitude = standing_inv_freq(rotation), rotation.attention_factor
        return inv_freq * 0.0 if (geometry.layer + 1) % self.every == 0 else inv_freq, amplitude
