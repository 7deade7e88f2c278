from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._factored import Factored
from pospatch.methods._math import native_parameters, periods, standing, yarn_amplitude, yarn_ramp
from pospatch.methods._options import choice, flag, number


@dataclass(frozen=True, kw_only=True)
class YaRN(Factored):
    """YaRN: high frequencies stay, low ones are interpolated, a ramp lies between, and cos and sin grow a little.

    interpolation="frequency": inv_freq[i] = w[i] / factor * ramp[i] + w[i] * (1 - ramp[i])
    interpolation="wavelength": inv_freq[i] = w[i] / (factor * ramp[i] + 1 - ramp[i])
    ramp[i] = clip((i - low) / (high - low), 0, 1); low = floor(pair(beta_fast)), high = ceil(pair(beta_slow)),
    pair(turns) = dim * ln(L / (2 * pi * turns)) / (2 * ln(rope_theta)); amplitude = 0.1 * ln(factor) + 1

    Source: YaRN: Efficient Context Window Extension of Large Language Models, arXiv 2309.00071, equations 17 to 25. The
        "wavelength" form is the revised one of its repository (issue 24) and of PoSE, arXiv 2309.10400.

    Args:
        factor: wanted length / trained length, at least 1.
        original_max_position_embeddings: L, the trained length in tokens; None is the model's own.
        beta_fast: turns over L above which a pair stays, 32 in the paper.
        beta_slow: turns over L below which a pair is interpolated in full, 1 in the paper.
        attention_factor: amplitude of cos and sin, above 0; None computes it.
        mscale, mscale_all_dim: where both are given, amplitude = (0.1 * mscale * ln(factor) + 1) /
            (0.1 * mscale_all_dim * ln(factor) + 1), as DeepSeek does.
        truncate: False leaves low and high unrounded, as gpt-oss does.
        interpolation: "frequency" is what every library ships; "wavelength" has no native form.

    Departs: high is clipped to dim - 1 although pairs run to dim / 2 - 1, as in the authors' code.

    Raises:
        BadOption: beta_fast is not above beta_slow.
        UnsupportedHost: the layer has no rotary encoding.
    """

    source: ClassVar[str] = "YaRN, arXiv 2309.00071, equations 17 to 25"

    beta_fast: float = number(32.0, above=0.0)
    beta_slow: float = number(1.0, above=0.0)
    attention_factor: float | None = number(None, above=0.0, optional=True)
    mscale: float | None = number(None, above=0.0, optional=True)
    mscale_all_dim: float | None = number(None, above=0.0, optional=True)
    truncate: bool = flag(True)
    interpolation: str = choice("frequency", "frequency", "wavelength")

    def check(self) -> None:
        if self.beta_fast <= self.beta_slow:
            raise BadOption(f"{self.name}: beta_fast={self.beta_fast:g} must be above beta_slow={self.beta_slow:g}")

    def amplitude(self) -> float:
        """Factor on cos and sin that YaRN adds."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale is not None and self.mscale_all_dim is not None:
            return yarn_amplitude(self.factor, self.mscale) / yarn_amplitude(self.factor, self.mscale_all_dim)
        return yarn_amplitude(self.factor)

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        rotation = standing(self.name, geometry)
        ramp = yarn_ramp(rotation, self.original(geometry), self.beta_fast, self.beta_slow, self.truncate)
        keep, period = 1 - ramp, periods(rotation)
        if self.interpolation == "wavelength":
            inv_freq = 1.0 / (period * (self.factor * (1 - keep) + keep))
        else:
            inv_freq = 1.0 / (self.factor * period) * (1 - keep) + 1.0 / period * keep
        return inv_freq, rotation.attention_factor * self.amplitude()

    def rope_parameters(self, geometry: Geometry) -> dict[str, Any] | None:
        if self.interpolation != "frequency":
            return None
        extra = {name: getattr(self, name) for name in ("attention_factor", "mscale", "mscale_all_dim")}
        return native_parameters(
            "yarn",
            geometry,
            factor=self.factor,
            original_max_position_embeddings=self.original(geometry),
            beta_fast=self.beta_fast,
            beta_slow=self.beta_slow,
            truncate=self.truncate,
            **{name: value for name, value in extra.items() if value is not None},
        )
