"""Rotation by several coordinates at once: each axis turns its own share of the pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from pospatch.errors import BadOption
from pospatch.methods._math import rotary_inv_freq

__all__ = ["axial_angles", "axial_frequencies", "check_axes"]


def check_axes(name: str, dim: int, axes: int) -> None:
    """BadOption where there is no pair for every axis, or the dimensions are odd."""
    if dim % 2 or dim < 2 * axes:
        raise BadOption(
            f"{name} turns pairs and gives each of {axes} axes as many; head_dim={dim} must be even and at least {2 * axes}, "
            "not odd or smaller"
        )


def axial_frequencies(theta: float, dim: int, axes: int) -> Tensor:
    """theta ** (-k / share) for the pairs k = 0 .. share - 1 of one axis, radians per unit, float32 (share,)."""
    return rotary_inv_freq(theta, 2 * (dim // (2 * axes)))


def axial_angles(positions: Tensor, frequencies: Tensor, axes: int) -> Tensor:
    """Angles (batch, 1, length, axes * len(frequencies)) for coordinates (axes, batch, length), the first axis first; or for
    positions (batch, length), which every axis then has."""
    where = positions[None].expand(axes, *positions.shape) if positions.dim() == 2 else positions
    angles = where[..., None].float() * frequencies.to(where.device)
    return torch.cat(tuple(angles), dim=-1)[:, None]
