from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._base import Rotary, Weights
from pospatch.methods._math import rotary_inv_freq, turn
from pospatch.methods._options import flag, number, numbers


@dataclass(frozen=True, kw_only=True)
class MRoPE(Rotary):
    """Multimodal RoPE: a token has a time, a row and a column, and each pair turns with one of the three.

    angle[i] = position[axis[i]] * rope_theta ** (-2 * i / dim)
    chunked: axis is 0 for the first mrope_section[0] pairs, then 1, then 2
    interleaved: axis[i] = i mod 3 while i < 3 * mrope_section[axis[i]], else 0

    Source: Qwen2-VL, arXiv 2409.12191, section 2.1; interleaved: Qwen3-VL, arXiv 2511.21631.

    Args:
        mrope_section: pairs for time, row and column; their sum is the number of pairs. None is 1/4, 3/8 and 3/8 of
            them, as the 16, 24, 24 of Qwen2-VL.
        mrope_interleaved: Qwen3-VL's order instead of Qwen2-VL's.
        rope_theta: base of the frequencies, above 1. None keeps the host's, and is 10000 where it has none.

    Positions may be (batch, length), where the three rows are equal and the result is 1-D RoPE, or (3, batch, length).

    Raises:
        BadOption: mrope_section does not have three whole numbers with that sum.
    """

    family: ClassVar[str] = "rotary"
    spectral: ClassVar[bool] = False
    source: ClassVar[str] = "Qwen2-VL, arXiv 2409.12191, section 2.1"

    mrope_section: tuple[float, ...] | None = numbers(None, above=-1.0, optional=True)
    mrope_interleaved: bool = flag(False)
    rope_theta: float | None = number(None, above=1.0, optional=True)

    def numbers_taken(self) -> int:
        return 3

    def dim(self, geometry: Geometry) -> int:
        """Rotated dimensions of each head."""
        return geometry.rotation.dim if geometry.rotation else geometry.head_dim

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        if self.dim(geometry) % 2:
            raise BadOption(f"{self.name} turns pairs; head_dim={geometry.head_dim} is odd and must be even")
        self.axes(geometry)

    def axes(self, geometry: Geometry) -> Tensor:
        """Which of time, row and column turns each pair, int64 (half,)."""
        half = self.dim(geometry) // 2
        other = 3 * half // 8
        section = [half - 2 * other, other, other] if self.mrope_section is None else list(self.mrope_section)
        if len(section) != 3 or sum(section) != half or any(n != int(n) or n < 0 for n in section):
            raise BadOption(f"{self.name}: mrope_section={section} must be three whole numbers with the sum {half}")
        counts = [int(n) for n in section]
        if self.mrope_interleaved:
            return torch.tensor([i % 3 if i < 3 * counts[i % 3] else 0 for i in range(half)])
        return torch.repeat_interleave(torch.arange(3), torch.tensor(counts))

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        theta = self.rope_theta or (geometry.rotation.theta if geometry.rotation else 10000.0)
        return rotary_inv_freq(theta, self.dim(geometry)), 1.0

    def rotate(
        self,
        x: Tensor,
        positions: Tensor,
        side: str,
        weights: Weights,
        geometry: Geometry,
        length: Tensor | None = None,
    ) -> Tensor:
        inv_freq = self.frequencies(geometry)[0].to(x.device)
        if positions.dim() == 3:
            coordinate = positions[self.axes(geometry).to(positions.device)].movedim(0, -1)
        else:
            coordinate = positions[..., None]
        return turn(x, (coordinate.float() * inv_freq)[:, None])
