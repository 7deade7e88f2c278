"""The positive parameters of KERPLE's kernels: their start, and how they stay in range."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pospatch.geometry import Geometry

__all__ = ["LEAST", "at_least", "kernel_start"]

LEAST = 0.01  # the authors' lower bound of every parameter


def at_least(value: Tensor, parametrization: str, most: float | None = None) -> Tensor:
    """The parameter in [LEAST, most], float32, of what is learned."""
    value = value.float()
    if parametrization == "clamp":
        through = value - value.detach()  # 0, its gradient 1
        return value.clamp(min=LEAST, max=most).detach() + through
    if most is not None:
        return LEAST + (most - LEAST) * torch.sigmoid(value)
    return LEAST + torch.nn.functional.softplus(value)


def kernel_start(
    geometry: Geometry,
    seed: int,
    parametrization: str,
    ranges: Mapping[str, float],
    bounded: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """What is learned of parameters that are drawn uniformly from (0, range), one a head, float32.

    bounded: the parameters that have an upper bound.
    """
    generator = torch.Generator("cpu").manual_seed(seed * 100_003 + geometry.layer)
    found = {}
    for name, width in ranges.items():
        value = torch.rand(geometry.heads, generator=generator, device="cpu") * width
        found[name] = value if parametrization == "clamp" else _raw(value, (bounded or {}).get(name))
    return found


def _raw(value: Tensor, most: float | None) -> Tensor:
    """What `at_least` maps to the value; a little inside the bounds, which are infinitely far away."""
    if most is not None:
        return torch.logit(((value - LEAST) / (most - LEAST)).clamp(1e-3, 1 - 1e-3))
    return torch.log(torch.expm1((value - LEAST).clamp(min=1e-3)))
