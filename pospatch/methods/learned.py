from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._base import Embedding, Index
from pospatch.methods._documents import Strided
from pospatch.methods._options import choice, integer, number
from pospatch.methods._table import grid, interpolate, tile


@dataclass(frozen=True, kw_only=True)
class Learned(Embedding):
    """A learned table of positions: the host's own made longer, or a new one where the host has none.

    x[n] += table[n]

    Source: resize forms of LongEmbed, arXiv 2404.12096, section 4.1 (grid), of Longformer, arXiv 2004.05150,
        section 5 (tile), and spline interpolation of trained tables (linear, cubic).

    Args:
        length: rows of the new table in tokens; None is factor * the trained length.
        factor: new length / trained length; None is 1 where there is no length either.
        resize: "linear" (the default) and "cubic" sample the old table evenly, both ends exact; "grid" puts old row p at
            row p * factor, a whole factor, and interpolates between; "tile" repeats the old rows, so that every trained
            position keeps its row.
        short: how "grid" reads documents no longer than the old table. "strided" (the default, as LongEmbed) reads
            row p * factor at position p, the old rows, so that such inputs give the trained model's logits to the bit;
            longer ones read row p at position p. "plain" always reads row p at position p.
        seed: of the small random start where the host has no table.

    With "strided" the rows depend on the length of the document, pads not counted. A cache that began in a document
    shorter than the old table cannot grow beyond it, as its keys stand at other rows than a long document's: that step
    raises. Use "plain" or another form for a model that generates across the old length.

    Departs: rows of the grid after the last old one repeat it, where LongEmbed leaves them to training; its rule for short
        inputs goes by the longest of a batch, this one by each document. "cubic" is the spline whose third derivative
        is continuous next to the ends too ("not-a-knot"), which needs 4 rows; with fewer its order is lower.

    Raises:
        BadOption: length and factor together, a length below the trained one, a grid that is no whole multiple of it, or
            an option of a resize form that is not asked for.
    """

    family: ClassVar[str] = "absolute"
    source: ClassVar[str] = "LongEmbed, arXiv 2404.12096, section 4.1; Longformer, arXiv 2004.05150, section 5"

    length: int | None = integer(None, low=2, high=2**22, optional=True)
    factor: float | None = number(None, low=1.0, high=4096.0, optional=True)
    resize: str | None = choice(None, "linear", "cubic", "grid", "tile")
    short: str | None = choice(None, "strided", "plain")
    seed: int | None = integer(None, low=0, optional=True)

    def check(self) -> None:
        if self.length is not None and self.factor is not None:
            raise BadOption(f"learned: give length={self.length} or factor={self.factor}, not both")
        if self.short is not None and self.resize != "grid":
            raise BadOption(f"learned: short={self.short!r} says how resize='grid' is read, got resize={self.resize!r}")

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        rows = self.rows(geometry)
        if geometry.table is None:
            if self.resize is not None:
                raise BadOption(
                    f"learned: resize={self.resize!r} makes a trained table longer and this model has none; leave it out"
                )
            return
        old = geometry.table.shape[0]
        if self.seed is not None:
            raise BadOption(f"learned: seed={self.seed} is for a new table and this model has one of {old} rows")
        if rows < old:
            raise BadOption(f"learned: length={rows} is below the trained length of {old} tokens")
        if self.resize == "grid" and rows % old:
            raise BadOption(
                f"learned: resize='grid' needs a whole multiple of the {old} trained rows, got {rows}; "
                f"length={(rows // old + 1) * old} would do"
            )

    def rows(self, geometry: Geometry) -> int:
        return self.length or round((self.factor or 1.0) * geometry.length)

    def table(self, geometry: Geometry) -> Tensor:
        rows, old = self.rows(geometry), geometry.table
        if old is None:
            start = torch.Generator().manual_seed(self.seed or 0)
            return torch.randn(rows, geometry.width, generator=start) * 0.02
        if self.resize == "tile":
            return tile(old, rows)
        if self.resize == "grid":
            return grid(old, rows // old.shape[0], rows)
        return interpolate(old, rows, self.resize or "linear")

    def reading(self, geometry: Geometry) -> Index | None:
        if geometry.table is None or self.resize != "grid" or self.short == "plain":
            return None
        old = geometry.table.shape[0]
        return Strided(short=old, factor=self.rows(geometry) // old)
