"""What all scalings by one factor share: the option, the trained length it starts from and the length it reaches."""

from __future__ import annotations

from dataclasses import dataclass

from pospatch.geometry import Geometry
from pospatch.methods._base import Scaling
from pospatch.methods._options import integer, number

__all__ = ["Factored"]


@dataclass(frozen=True, kw_only=True)
class Factored(Scaling):
    """A scaling with `factor` = wanted length / trained length, at least 1."""

    factor: float = number(low=1.0)
    original_max_position_embeddings: int | None = integer(None, optional=True)

    def original(self, geometry: Geometry) -> int:
        """The trained length in tokens: the option where it is given, else the model's own."""
        return self.original_max_position_embeddings or geometry.length

    def target_length(self, geometry: Geometry) -> int:
        return int(self.factor * self.original(geometry))
