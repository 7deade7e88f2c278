"""Any fixed spectrum in a form transformers reads: a `longrope` of two equal lists, or `proportional` where nothing turns."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pospatch.geometry import Geometry

__all__ = ["as_longrope", "nothing_turns"]

STILL = (
    3e38  # times any period above 1 it is infinite in float32, so that the pair's frequency is 0; JSON has no infinity
)
STEPS = 6


def nothing_turns(theta: float) -> dict[str, Any]:
    """All frequencies 0."""
    return {"rope_type": "proportional", "rope_theta": theta, "partial_rotary_factor": 0.0}


def as_longrope(inv_freq: Tensor, amplitude: float, geometry: Geometry) -> dict[str, Any]:
    """The spectrum as divisors of rope_theta ** (2i / dim), the same below and beyond the trained length."""
    dim = 2 * inv_freq.shape[-1]
    theta = geometry.rotation.theta if geometry.rotation is not None else 10000.0
    factors = _divisors(inv_freq.detach().cpu().float(), theta, dim).tolist()
    found: dict[str, Any] = {
        "rope_type": "longrope",
        "rope_theta": theta,
        "factor": 1.0,
        "original_max_position_embeddings": geometry.length,
        "attention_factor": float(amplitude),
        "short_factor": factors,
        "long_factor": factors,
    }
    if dim != geometry.head_dim:
        found["partial_rotary_factor"] = _share(dim, geometry.head_dim)
    return found


def _divisors(inv_freq: Tensor, theta: float, dim: int) -> Tensor:
    """Divisors whose product with the period, inverted in float32 as transformers does it, is the frequency to the bit
    wherever float32 can hit it."""
    periods = theta ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim)
    nearest = (1.0 / (inv_freq.double() * periods.double())).float()
    best, gap = nearest.clone(), _gap(nearest, periods, inv_freq)
    for direction in (math.inf, -math.inf):
        tried = nearest.clone()
        for _ in range(STEPS):
            tried = torch.nextafter(tried, torch.tensor(direction))
            now = _gap(tried, periods, inv_freq)
            best, gap = torch.where(now < gap, tried, best), torch.minimum(now, gap)
    return torch.where(inv_freq == 0, torch.tensor(STILL), best)


def _gap(divisors: Tensor, periods: Tensor, inv_freq: Tensor) -> Tensor:
    return (1.0 / (divisors * periods) - inv_freq).abs().nan_to_num(math.inf)


def _share(dim: int, head_dim: int) -> float:
    """A share of the head that transformers truncates to exactly `dim`."""
    share = dim / head_dim
    while int(head_dim * share) < dim:
        share = math.nextafter(share, 1.0)
    return share
