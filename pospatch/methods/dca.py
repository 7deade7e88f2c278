from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._base import Band, Bands
from pospatch.methods._options import integer, number


@dataclass(frozen=True, kw_only=True)
class DCA(Bands):
    """Dual chunk attention: positions start anew in each chunk, and queries see older chunks from a bounded position.

    s = chunk_size - local_size; keys stand at n mod s; the query stands at
    m mod s                         for keys of its own chunk,
    min(m mod s + s, chunk_size)    for keys of the chunk before,
    min(2 * s - 1, chunk_size)      for keys of older chunks

    Source: Training-Free Long-Context Scaling of Large Language Models, arXiv 2402.17463, section 3, with the bounds
        of its code.

    Args:
        chunk_size: largest position in use, in tokens; None is 3/4 of the trained length.
        local_size: tokens by which the chunk is shortened, below chunk_size; None is 1/8 of the trained length.
        attention_factor: its square multiplies the logits, above 0; the paper's tables use 1, its code 1 + 0.05 * ln(length
            / trained).

    Departs: the bound is chunk_size as in the code; the paper's text says chunk_size - 1.

    Raises:
        BadOption: local_size is not below chunk_size, or chunk_size is above the trained length.
        UnsupportedHost: the layer has no rotary encoding.
    """

    source: ClassVar[str] = "Dual chunk attention, arXiv 2402.17463, section 3"

    chunk_size: int | None = integer(None, optional=True)
    local_size: int | None = integer(None, low=0, optional=True)
    attention_factor: float = number(1.0, above=0.0)

    def sizes(self, geometry: Geometry) -> tuple[int, int]:
        """(chunk_size, s) in tokens."""
        chunk = self.chunk_size or max(1, 3 * geometry.length // 4)
        local = geometry.length // 8 if self.local_size is None else self.local_size
        if local >= chunk or chunk > geometry.length:
            raise BadOption(
                f"{self.name}: local_size={local} must be below chunk_size={chunk}, and that at most the trained "
                f"length {geometry.length}"
            )
        return chunk, chunk - local

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        self.sizes(geometry)

    def bands(self, geometry: Geometry) -> tuple[Band, ...]:
        chunk, size = self.sizes(geometry)
        scale = self.attention_factor**2

        def inside(positions: Tensor) -> Tensor:
            return positions % size

        return (
            Band(0, 1, inside, inside, scale, size),
            Band(1, 2, lambda m: (m % size + size).clamp(max=chunk), inside, scale, size),
            Band(2, None, lambda m: torch.full_like(m, min(2 * size - 1, chunk)), inside, scale, size),
        )
