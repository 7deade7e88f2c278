"""What methods that read the hidden states share."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gates", "linear", "seeded"]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias in float32, also under autocast: what is summed over all tokens must not be rounded first."""
    with torch.autocast(x.device.type, enabled=False):
        return torch.nn.functional.linear(x.float(), weight.float(), None if bias is None else bias.float())


def gates(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One number a head and token, (batch, heads, length, 1) float32, from hidden (batch, length, width)."""
    return linear(hidden, weight, bias).transpose(1, 2)[..., None]


def seeded(*shape: int, std: float, seed: int) -> Tensor:
    """Normal numbers that depend on the seed alone, never on the global random state."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cpu") * std
