"""Which dimensions a host rotates and how it pairs them, measured from q before and after its rotation."""

from __future__ import annotations

import torch
from torch import Tensor

from pospatch.geometry import Rotation

__all__ = ["LAYOUTS", "UNKNOWN", "measured", "paired"]

LAYOUTS = ("half", "interleaved", "half tail", "interleaved tail")
UNKNOWN = "unknown"


def paired(x: Tensor, layout: str, dim: int) -> Tensor:
    """q or k with the rotated pairs moved to (i, i + half) of the first `dim` dimensions; done to both alike it leaves every
    dot product."""
    if layout.endswith("tail"):
        x = torch.cat((x[..., -dim:], x[..., :-dim]), dim=-1) if dim < x.shape[-1] else x
    if layout.startswith("interleaved"):
        x = torch.cat((x[..., 0:dim:2], x[..., 1:dim:2], x[..., dim:]), dim=-1)
    return x


def measured(turn: tuple[Tensor, Tensor], rotation: Rotation, positions: Tensor) -> str:
    """The layout under which the native rotation is what our formula gives, or UNKNOWN."""
    from pospatch.methods._base import apply_rotation

    still, moved = (x.double() for x in turn)
    inv_freq = rotation.inv_freq.double().to(still.device)
    angles = positions[..., None].double() * inv_freq
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    cos, sin = angles.cos() * rotation.attention_factor, angles.sin() * rotation.attention_factor
    size = still.abs().max()
    for layout in LAYOUTS:
        if rotation.dim > still.shape[-1]:
            break
        ours = apply_rotation(paired(still, layout, rotation.dim), cos, sin)
        if (ours - paired(moved, layout, rotation.dim)).abs().max() <= 2e-2 * size:
            return layout
    return UNKNOWN
