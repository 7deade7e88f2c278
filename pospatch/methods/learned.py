from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._base import Embedding
from pospatch.methods._options import choice, integer, number
from pospatch.methods._table import grid, interpolate, tile


@dataclass(frozen=True, kw_only=True)
class Learned(Embedding):
    """A learned table of positions: the host's own made longer, or a new one where the host has none.

    x[n] += table[n]

    Source: resize forms of Extending Context Window via Positional Interpolation for tables, LongEmbed arXiv 2404.12096
        (grid), Longformer arXiv 2004.05150 (tile), and spline interpolation of trained tables (linear, cubic).

    Args:
        length: rows of the new table in tokens; None is factor * the trained length.
        factor: new length / trained length; None is 1 where there is no length either.
        resize: "linear" and "cubic" sample the old table evenly, ends exact; "grid" puts old row p at row p * factor and
            interpolates between; "tile" repeats the old rows, which keeps every trained position as it is.
        seed: of the small random start where the host has no table.

    Departs: "grid" keeps the positions of short inputs as they are; LongEmbed multiplies them by the factor, which
        equals the trained model on inputs that use every factor-th position.

    Raises:
        BadOption: length and factor together, or a length below the trained one.
    """

    family: ClassVar[str] = "absolute"
    source: ClassVar[str] = "LongEmbed, arXiv 2404.12096; Longformer, arXiv 2004.05150"

    length: int | None = integer(None, low=2, high=2**22, optional=True)
    factor: float | None = number(None, low=1.0, high=4096.0, optional=True)
    resize: str = choice("linear", "linear", "cubic", "grid", "tile")
    seed: int = integer(0, low=0)

    def check(self) -> None:
        if self.length is not None and self.factor is not None:
            raise BadOption(f"{self.name}: give length={self.length} or factor={self.factor}, not both")
        if self.resize == "grid" and self.factor is not None and self.factor != int(self.factor):
            raise BadOption(f"{self.name}: resize='grid' needs a whole factor, got factor={self.factor}")

    def rows(self, geometry: Geometry) -> int:
        """Rows of the new table."""
        rows = self.length or round((self.factor or 1.0) * geometry.length)
        if geometry.table is not None and rows < geometry.table.shape[0]:
            raise BadOption(
                f"{self.name}: length={rows} is below the trained length of {geometry.table.shape[0]} tokens"
            )
        return rows

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        self.rows(geometry)

    def table(self, geometry: Geometry) -> Tensor:
        rows = self.rows(geometry)
        old = geometry.table
        if old is None:
            start = torch.Generator().manual_seed(self.seed)
            return torch.randn(rows, geometry.width, generator=start) * 0.02
        if self.resize == "tile":
            return tile(old, rows)
        if self.resize == "grid":
            return grid(old, max(1, round(rows / old.shape[0])), rows)
        return interpolate(old, rows, self.resize)
