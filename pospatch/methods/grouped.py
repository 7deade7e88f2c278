from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pospatch.geometry import Geometry
from pospatch.methods._base import Forward, Index
from pospatch.methods._options import integer


@dataclass(frozen=True, kw_only=True)
class Grouped(Index):
    """Grouped positions: neighbouring tokens share one position, so that a model reads further with the positions it has.

    position[n] = n // group_size

    Source: LongEmbed: Extending Embedding Models for Long Context Retrieval, arXiv 2404.12096, section 4.1.

    Args:
        group_size: g, tokens that share a position, at least 1; the paper takes ceil(length wanted / trained length).
            1 changes nothing.

    Departs: none for a table. On a rotary encoding tokens of one group stand at distance 0 of each other.
    """

    family: ClassVar[str] = "absolute"
    needs: ClassVar[str] = "nothing"
    source: ClassVar[str] = "LongEmbed, arXiv 2404.12096, section 4.1"

    group_size: int = integer(2, high=2**16)

    def positions(self, positions: Tensor, geometry: Geometry, forward: Forward) -> Tensor:
        return positions // self.group_size

    def target_length(self, geometry: Geometry) -> int:
        return self.group_size * geometry.length
