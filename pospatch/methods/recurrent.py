from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._base import Forward, Index
from pospatch.methods._options import integer, number


@dataclass(frozen=True, kw_only=True)
class Recurrent(Index):
    """Recurrent positions: the trained positions are used again and again, so that a model reads on past the last one.

    position[n] = n % period

    Source: LongEmbed: Extending Embedding Models for Long Context Retrieval, arXiv 2404.12096, section 4.1.

    Args:
        period: tokens after which positions start again, at most the trained length; None is the trained length.
        factor: length that the model reads afterwards / trained length; it is what the config then promises, and no
            position depends on it.

    Departs: none for a table. On a rotary encoding a token may stand before one that it follows.

    Raises:
        BadOption: period above the trained length.
    """

    family: ClassVar[str] = "absolute"
    needs: ClassVar[str] = "nothing"
    source: ClassVar[str] = "LongEmbed, arXiv 2404.12096, section 4.1"

    period: int | None = integer(None, high=2**22, optional=True)
    factor: float = number(2.0, low=1.0, high=4096.0)

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        if self.period is not None and self.period > geometry.length:
            raise BadOption(
                f"recurrent: period={self.period} is above the trained length of {geometry.length} tokens, "
                "whose positions are to be used again"
            )

    def positions(self, positions: Tensor, geometry: Geometry, forward: Forward) -> Tensor:
        return positions % (self.period or geometry.length)

    def target_length(self, geometry: Geometry) -> int:
        return round(self.factor * geometry.length)
