from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._base import Scaling
from pospatch.methods._math import standing, standing_inv_freq, yarn_ramp
from pospatch.methods._options import integer, number


@dataclass(frozen=True, kw_only=True)
class DynamicYaRN(Scaling):
    """Dynamic YaRN: `yarn` whose factor is the number of tokens seen over the trained length.

    factor = max(1, length / L); inv_freq and amplitude as in `yarn` (interpolation="frequency")

    Source: YaRN, arXiv 2309.00071, section 3.3 (dynamic scaling) with equations 17 to 25.

    Args:
        original_max_position_embeddings: L, the trained length in tokens; None is the model's own.
        beta_fast: turns over L above which a pair stays, 32 in the paper.
        beta_slow: turns over L below which a pair is interpolated in full, 1 in the paper.

    Departs: nothing is kept between calls, so a short text after a long one is read with factor 1; the authors' code
        keeps the largest factor.

    Raises:
        BadOption: beta_fast is not above beta_slow.
        UnsupportedHost: the layer has no rotary encoding.
    """

    exact_decode: ClassVar[bool] = False
    source: ClassVar[str] = "Dynamic YaRN, arXiv 2309.00071, section 3.3"

    original_max_position_embeddings: int | None = integer(None, optional=True)
    beta_fast: float = number(32.0, above=0.0)
    beta_slow: float = number(1.0, above=0.0)

    @property
    def dynamic(self) -> bool:
        return True

    def check(self) -> None:
        if self.beta_fast <= self.beta_slow:
            raise BadOption(f"{self.name}: beta_fast={self.beta_fast:g} must be above beta_slow={self.beta_slow:g}")

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, Any]:
        rotation = standing(self.name, geometry)
        inv_freq = standing_inv_freq(rotation)
        if length is None:
            return inv_freq, rotation.attention_factor
        trained = self.original_max_position_embeddings or geometry.length
        ramp = yarn_ramp(rotation, trained, self.beta_fast, self.beta_slow, True).to(length.device)
        factor = (length.float() / trained).clamp(min=1.0)
        amplitude = (0.1 * torch.log(factor) + 1.0) * rotation.attention_factor
        return inv_freq.to(length.device) * (ramp / factor + (1 - ramp)), amplitude[:, :, None, None]
