"""How a GGUF says a spectrum: keys where llama.cpp has a word for it, else one divisor for each pair and an amplitude.

theta[i] = position * base ** (-2i / dim) / divisor[i];  cos and sin are multiplied by attn_factor
type linear: theta / factor;  type yarn: a ramp between both, and attn_factor * (0.1 * ln(factor) + 1)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pospatch.checkpoint._engines import PLAIN_YARN, gguf_keys, plain_keys
from pospatch.errors import UnsupportedHost

__all__ = ["FACTORS", "Said", "computed", "difference", "say"]

FACTORS = "rope_freqs.weight"
STILL = 3e38  # divisor of a pair that does not turn; infinity is what --check-tensors refuses
NEAR = 2e-6  # relative, in which two float32 formulas of one frequency may differ


@dataclass(frozen=True)
class Said:
    """Keys below the architecture's name, and divisors."""

    keys: dict[str, Any]
    factors: Tensor | None = None


def say(config: Any, inv_freq: Tensor, amplitude: float) -> Said:
    """The plainest form from which llama.cpp computes this spectrum.

    Raises:
        UnsupportedHost: none is exact.
    """
    plain = plain_keys(config)
    if amplitude != 1.0:
        plain["rope.scaling.attn_factor"] = amplitude
    divisors = computed(plain, None, len(inv_freq))[0] / inv_freq.double()
    divisors = torch.where(inv_freq == 0, STILL, divisors).float()
    for keys, factors in ((gguf_keys(config), None), (plain, None), (plain, divisors)):
        if keys is not None and difference(keys, factors, inv_freq, amplitude) <= NEAR:
            return Said(keys, factors)
    raise UnsupportedHost("llama.cpp computes other frequencies from every form that a GGUF has for this spectrum")


def difference(keys: dict[str, Any], factors: Tensor | None, inv_freq: Tensor, amplitude: float) -> float:
    """Largest relative difference of a frequency or of the amplitude; below 1e-30 a frequency is 0."""
    theirs, factor = computed(keys, factors, len(inv_freq))
    ours = inv_freq.double()
    gaps = (theirs - ours).abs() / ours.clamp(min=1e-30)
    still = (ours == 0) & (theirs < 1e-30)
    return max(float(gaps.masked_fill(still, 0.0).max()), abs(factor / amplitude - 1.0))


def computed(keys: dict[str, Any], factors: Tensor | None, pairs: int) -> tuple[Tensor, float]:
    """(frequencies, amplitude) as llama.cpp computes them from the keys, in float64."""
    base, dim = float(keys.get("rope.freq_base", 10000.0)), 2 * pairs
    pair = torch.arange(pairs, dtype=torch.float64)
    freq = base ** (-2.0 * pair / dim)
    if factors is not None:
        freq = freq / factors.double()
    amplitude = float(keys.get("rope.scaling.attn_factor", 1.0))
    kind, factor = keys.get("rope.scaling.type", "none"), float(keys.get("rope.scaling.factor", 1.0))
    if kind == "linear":
        return freq / factor, amplitude
    if kind != "yarn":
        return freq, amplitude
    length = keys["rope.scaling.original_context_length"]
    fast = keys.get("rope.scaling.yarn_beta_fast", PLAIN_YARN["beta_fast"])
    slow = keys.get("rope.scaling.yarn_beta_slow", PLAIN_YARN["beta_slow"])
    low = max(0.0, math.floor(_pair(dim, length, fast, base)))
    high = min(dim - 1.0, math.ceil(_pair(dim, length, slow, base)))
    keep = 1.0 - ((pair - low) / max(0.001, high - low)).clamp(0.0, 1.0)
    return freq / factor * (1.0 - keep) + freq * keep, amplitude * (0.1 * math.log(factor) + 1.0)


def _pair(dim: int, length: float, turns: float, base: float) -> float:
    """The pair that turns so many times over the trained length."""
    return dim * math.log(length / (2 * math.pi * turns)) / (2 * math.log(base))
