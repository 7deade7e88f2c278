"""The kinds at the rotation: angles by position, and what scales those of the host."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from pospatch.errors import UnsupportedHost
from pospatch.geometry import Geometry, Rotation
from pospatch.methods._method import Method, Weights

__all__ = ["Rotary", "Scaling", "apply_rotation", "cos_sin_of", "needs_fixed"]


class Rotary(Method):
    """Rotates q and k by angles that grow with position: pair i of a head turns by inv_freq[i] radians per token."""

    slot: ClassVar[str] = "rotation"
    # True where inv_freq and one amplitude say everything; False where `rotate` is overridden
    spectral: ClassVar[bool] = True

    def numbers_taken(self) -> int:
        """Numbers that a position from the caller has; 0 where none can be given."""
        return 1

    @property
    def dynamic(self) -> bool:
        """True where the frequencies depend on the length of the sequence seen so far."""
        return False

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        """(inv_freq in radians per token, shape (half,), amplitude of cos and sin).

        Where the method is dynamic, `length` (batch, 1) int64 is the number of tokens seen; inv_freq is then (batch, half)
        and the amplitude may be a tensor (batch, 1, 1, 1).
        `length` None means: at most the trained length.
        """
        raise NotImplementedError

    def rope_parameters(self, geometry: Geometry) -> dict[str, Any] | None:
        """The same spectrum in transformers' spelling, or None where it has no exact native form."""
        return None

    def target_length(self, geometry: Geometry) -> int | None:
        """The length in tokens that the model is meant to read afterwards, or None where it stays."""
        return None

    @property
    def plain(self) -> bool:
        """True where `rotate` is the rotation by `frequencies` and nothing else."""
        kind = type(self)
        return kind.rotate is Rotary.rotate and kind.cos_sin is Rotary.cos_sin

    def rotate(
        self,
        x: Tensor,
        positions: Tensor,
        side: str,
        weights: Weights,
        geometry: Geometry,
        length: Tensor | None = None,
    ) -> Tensor:
        """Rotate x (batch, heads, length, head_dim) at positions (batch, length); `side` is "query" or "key".

        The first 2 * half dimensions turn, in the half-split layout (dimension i with i + half); the others pass.
        Override it (and set spectral = False) where a method needs more than one angle a pair.
        """
        cos, sin = self.cos_sin(positions, geometry, x.dtype, length)
        return apply_rotation(x, cos, sin)

    def cos_sin(
        self, positions: Tensor, geometry: Geometry, dtype: torch.dtype, length: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """cos and sin of the angles times the amplitude, (batch, 1, length, 2 * half); computed in float32, cast last."""
        inv_freq, amplitude = self.frequencies(geometry, length)
        return cos_sin_of(inv_freq.to(device=positions.device, dtype=torch.float32), amplitude, positions, dtype)


def cos_sin_of(inv_freq: Tensor, amplitude: float, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`Rotary.cos_sin` of frequencies that are float32 and at their place."""
    if inv_freq.dim() == 2:
        inv_freq = inv_freq[:, None, :]
    angles = positions[..., None].float() * inv_freq
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return (angles.cos() * amplitude).to(dtype), (angles.sin() * amplitude).to(dtype)


def apply_rotation(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first cos.shape[-1] dimensions of x in the half-split layout; the others pass unchanged."""
    dim = cos.shape[-1]
    turned, rest = x[..., :dim], x[..., dim:]
    first, second = turned[..., : dim // 2], turned[..., dim // 2 :]
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


class Scaling(Rotary):
    """Changes the frequencies of the rotary encoding that stands in the host already."""

    slot: ClassVar[str] = "scaling"
    family: ClassVar[str] = "scaling"
    clears: ClassVar[bool] = False
    needs: ClassVar[str] = "nothing"

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        if geometry.rotation is None:
            raise UnsupportedHost(
                f"{self.name} scales a rotary encoding and this model has none; put one there first: apply(model, ['rope', ...])"
            )
        needs_fixed(self.name, geometry.rotation)


def needs_fixed(name: str, rotation: Rotation) -> None:
    """Refuse to take frequencies for fixed ones that the host changes with the length of its input."""
    if not rotation.fixed:
        raise UnsupportedHost(
            f"{name} reads the frequencies of the rotary encoding, and this model changes them with the length of its input "
            f"(rope_type={rotation.rope_type!r}), so there is no spectrum to scale or re-index; put a fixed one there first: "
            f"apply(model, ['rope', {name!r}])"
        )
