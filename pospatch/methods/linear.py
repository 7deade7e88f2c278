from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pospatch.geometry import Geometry
from pospatch.methods._factored import Factored
from pospatch.methods._math import native_parameters, standing, standing_inv_freq


@dataclass(frozen=True, kw_only=True)
class Linear(Factored):
    """Position interpolation: all frequencies are divided by the factor, so that long positions fall into the
    trained range.

    inv_freq[i] = w[i] / factor, with w the frequencies that stand there

    Source: Extending Context Window of Large Language Models via Positional Interpolation, arXiv 2306.15595,
        equation 4.

    Args:
        factor: wanted length / trained length, at least 1.
        original_max_position_embeddings: trained length in tokens; None is the model's own. Only the reached length
            follows it.

    Raises:
        UnsupportedHost: the layer has no rotary encoding.
    """

    source: ClassVar[str] = "Positional Interpolation, arXiv 2306.15595, equation 4"

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        rotation = standing(self.name, geometry)
        return standing_inv_freq(rotation) / self.factor, rotation.attention_factor

    def rope_parameters(self, geometry: Geometry) -> dict[str, Any] | None:
        return native_parameters("linear", geometry, factor=self.factor)
