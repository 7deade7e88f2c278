from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._factored import Factored
from pospatch.methods._math import native_parameters, periods, standing
from pospatch.methods._options import number, numbers


@dataclass(frozen=True, kw_only=True)
class LongRoPE(Factored):
    """LongRoPE: a searched divisor for each pair, one list up to the trained length and another one beyond it.

    inv_freq[i] = 1 / (f[i] * rope_theta ** (2 * i / dim)), f = short_factor where length <= L, else long_factor
    amplitude = sqrt(1 + ln(factor) / ln(L))

    Source: LongRoPE, arXiv 2402.13753, equations 3 and 4; amplitude as in the Phi-3 models. LongRoPE2: arXiv
        2502.20082.

    Args:
        factor: wanted length / trained length, at least 1.
        original_max_position_embeddings: L, the trained length in tokens; None is the model's own.
        short_factor: dim / 2 divisors up to L, above 0; None is 1 for all pairs.
        long_factor: dim / 2 divisors beyond L, above 0; None is factor ** (2i / (dim - 2)), the NTK point from which
            the paper's search starts.
        attention_factor: amplitude of cos and sin, above 0; None computes it.

    Departs: the list is chosen by the largest position of each sequence plus 1 and all keys follow a switch; the
        first tokens have no list of their own, as in transformers.

    Raises:
        BadOption: a list that does not have dim / 2 numbers.
        UnsupportedHost: the layer has no rotary encoding.
    """

    exact_decode: ClassVar[bool] = False
    source: ClassVar[str] = "LongRoPE, arXiv 2402.13753, equations 3 and 4"

    short_factor: tuple[float, ...] | None = numbers(None, optional=True)
    long_factor: tuple[float, ...] | None = numbers(None, optional=True)
    attention_factor: float | None = number(None, above=0.0, optional=True)

    @property
    def dynamic(self) -> bool:
        return True

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        half = standing(self.name, geometry).dim // 2
        for name in ("short_factor", "long_factor"):
            got = getattr(self, name)
            if got is not None and len(got) != half:
                raise BadOption(
                    f"{self.name}: {name} has {len(got)} numbers and this model rotates {half} pairs; {half} are wanted"
                )

    def divisors(self, geometry: Geometry) -> tuple[list[float], list[float]]:
        """The lists in force: (short, long)."""
        dim = standing(self.name, geometry).dim
        short = self.short_factor or [1.0] * (dim // 2)
        long = self.long_factor or [self.factor ** (2 * i / max(dim - 2, 1)) for i in range(dim // 2)]
        return list(short), list(long)

    def amplitude(self, geometry: Geometry) -> float:
        """Factor on cos and sin."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 1.0 if self.factor <= 1 else math.sqrt(1 + math.log(self.factor) / math.log(self.original(geometry)))

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        rotation = standing(self.name, geometry)
        period = periods(rotation)
        lists = (torch.tensor(f, dtype=torch.float32, device="cpu") for f in self.divisors(geometry))
        short, long = (1.0 / (divisors * period) for divisors in lists)
        amplitude = rotation.attention_factor * self.amplitude(geometry)
        if length is None:
            return short, amplitude
        beyond = length > self.original(geometry)
        return torch.where(beyond, long.to(length.device), short.to(length.device)), amplitude

    def rope_parameters(self, geometry: Geometry) -> dict[str, Any] | None:
        short, long = self.divisors(geometry)
        extra = {} if self.attention_factor is None else {"attention_factor": self.attention_factor}
        return native_parameters(
            "longrope",
            geometry,
            factor=self.factor,
            original_max_position_embeddings=self.original(geometry),
            short_factor=short,
            long_factor=long,
            **extra,
        )
