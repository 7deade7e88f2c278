"""Formulas that several rotary methods share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pospatch.errors import BadOption, UnsupportedHost
from pospatch.geometry import Geometry, Rotation
from pospatch.methods._base import apply_rotation

__all__ = [
    "divided",
    "identity",
    "is_default",
    "longrope_parameters",
    "native_parameters",
    "ntk_divisors",
    "periods",
    "periods_of",
    "rotary_inv_freq",
    "standing",
    "standing_inv_freq",
    "turn",
    "window_of",
    "yarn_amplitude",
    "yarn_divisors",
    "yarn_ramp",
]


def rotary_inv_freq(theta: float, dim: int) -> Tensor:
    """theta ** (-2i / dim) in radians per token, float32 (dim / 2,): the operations of transformers, in their order."""
    return 1.0 / periods_of(theta, dim)


def periods_of(theta: float, dim: int) -> Tensor:
    """theta ** (2i / dim): tokens per radian, float32 (dim / 2,)."""
    return theta ** (torch.arange(0, dim, 2, dtype=torch.int64, device="cpu").to(torch.float) / dim)


def standing(name: str, geometry: Geometry) -> Rotation:
    """The rotary encoding in the layer; UnsupportedHost where there is none."""
    if geometry.rotation is None:
        raise UnsupportedHost(
            f"{name} needs a rotary encoding and this layer has none; put one there: apply(model, ['rope', {name!r}])"
        )
    return geometry.rotation


def is_default(rotation: Rotation) -> bool:
    """True where theta and dim say the whole spectrum, so that it can be computed as transformers computes it."""
    return rotation.rope_type == "default" and rotation.attention_factor == 1.0


def standing_inv_freq(rotation: Rotation) -> Tensor:
    """The frequencies that stand there, radians per token, float32 on the CPU; a new tensor."""
    if is_default(rotation):
        return rotary_inv_freq(rotation.theta, rotation.dim)
    return rotation.inv_freq.detach().to(device="cpu", dtype=torch.float32, copy=True)


def periods(rotation: Rotation) -> Tensor:
    """Tokens per radian of what stands there; infinite where a pair does not turn."""
    return periods_of(rotation.theta, rotation.dim) if is_default(rotation) else 1.0 / standing_inv_freq(rotation)


def native_parameters(rope_type: str, geometry: Geometry, **values: Any) -> dict[str, Any] | None:
    """transformers' `rope_parameters` for a spectrum built on the one that stands there; None where that one is not
    plain.

    A head that is rotated in part keeps its `partial_rotary_factor`.
    """
    rotation = geometry.rotation
    if rotation is None or not is_default(rotation):
        return None
    found: dict[str, Any] = {"rope_type": rope_type, "rope_theta": rotation.theta}
    if rotation.dim != geometry.head_dim:
        share = rotation.dim / geometry.head_dim
        while int(geometry.head_dim * share) < rotation.dim:  # transformers truncates the product
            share = math.nextafter(share, 1.0)
        found["partial_rotary_factor"] = share
    return found | values


def yarn_amplitude(factor: float, scale: float = 1.0) -> float:
    """0.1 * scale * ln(factor) + 1, and 1 at factor 1 or less."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def yarn_ramp(rotation: Rotation, length: int, beta_fast: float, beta_slow: float, truncate: bool) -> Tensor:
    """Share of interpolation of each pair, 0 to 1, float32 (half,).

    Pairs that turn more than `beta_fast` times over `length` tokens get 0, those that turn less than `beta_slow`
    times get 1.
    """
    dim, theta = rotation.dim, rotation.theta

    def pair(turns: float) -> float:
        return (dim * math.log(length / (turns * 2 * math.pi))) / (2 * math.log(theta))

    low, high = pair(beta_fast), pair(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    return torch.clamp((torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / (high - low), 0, 1)


def yarn_divisors(rotation: Rotation, length: int, factor: float) -> Tensor:
    """What YaRN with its default betas divides each frequency by, float32 (half,); 1 everywhere at factor 1."""
    ramp = yarn_ramp(rotation, length, 32.0, 1.0, True)
    return 1.0 / (ramp / factor + (1 - ramp))


def ntk_divisors(dim: int, factor: float) -> Tensor:
    """What the NTK-aware base divides each frequency by: factor ** (2i / (dim - 2)), float64 (dim / 2,)."""
    return factor ** (torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / max(dim - 2, 1))


def divided(rotation: Rotation, divisors: Tensor) -> Tensor:
    """What stands there with each frequency divided, in the order of operations of transformers' `longrope`."""
    return 1.0 / (divisors * periods(rotation))


def longrope_parameters(geometry: Geometry, divisors: Tensor, amplitude: float, length: int) -> dict[str, Any] | None:
    """Any fixed spectrum in transformers' spelling: a `longrope` whose two lists are equal; None where a frequency
    is 0."""
    if not bool(divisors.isfinite().all()):
        return None
    values = divisors.tolist()
    return native_parameters(
        "longrope",
        geometry,
        factor=1.0,
        original_max_position_embeddings=length,
        attention_factor=amplitude,
        short_factor=values,
        long_factor=values,
    )


def identity(positions: Tensor) -> Tensor:
    """The positions themselves."""
    return positions


def window_of(name: str, window: int | None, geometry: Geometry) -> int:
    """The window in tokens: a quarter of the trained length where it is None; BadOption where it is not below that
    length."""
    window = window or max(1, geometry.length // 4)
    if window >= geometry.length:
        raise BadOption(f"{name}: window={window} must be below the trained length {geometry.length}")
    return window


def turn(x: Tensor, angles: Tensor, amplitude: float = 1.0) -> Tensor:
    """Rotate x (batch, heads, length, head_dim) by angles (batch, heads or 1, length, half) in radians, float32."""
    angles = torch.cat((angles, angles), dim=-1)
    return apply_rotation(x, (angles.cos() * amplitude).to(x.dtype), (angles.sin() * amplitude).to(x.dtype))
