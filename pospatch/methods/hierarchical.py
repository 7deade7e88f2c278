from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.errors import BadOption, UnsupportedHost
from pospatch.geometry import Geometry
from pospatch.methods._base import Embedding
from pospatch.methods._options import integer, number


@dataclass(frozen=True, kw_only=True)
class Hierarchical(Embedding):
    """Hierarchical positions: a table of N rows reaches N * N positions, each the sum of a coarse and a fine vector.

    u[i] = (p[i] - alpha * p[0]) / (1 - alpha)
    q[i * N + j] = alpha * u[i] + (1 - alpha) * u[j]

    Positions below N keep their trained vectors exactly.

    Source: Su Jianlin, hierarchical decomposition of positions, kexue.fm/archives/7947.

    Args:
        length: rows of the new table in tokens, at most N * N; None is factor * N.
        factor: new length / trained length.
        alpha: weight of the coarse part, above 0, below 1, not 0.5 (where i and j could not be told apart).

    Raises:
        BadOption: alpha 0.5, length and factor together, or a length outside N to N * N.
        UnsupportedHost: the host has no trained table.
    """

    family: ClassVar[str] = "hierarchical"
    needs: ClassVar[str] = "nothing"
    source: ClassVar[str] = "Su Jianlin, kexue.fm/archives/7947"

    length: int | None = integer(None, low=2, high=2**22, optional=True)
    factor: float | None = number(None, low=1.0, high=4096.0, optional=True)
    alpha: float = number(0.4, above=0.0, high=0.999)

    def check(self) -> None:
        if self.alpha == 0.5:
            raise BadOption(
                "hierarchical: alpha=0.5 gives positions i*N + j and j*N + i the same vector; the default is 0.4"
            )
        if self.length is not None and self.factor is not None:
            raise BadOption(f"hierarchical: give length={self.length} or factor={self.factor}, not both")

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        if geometry.table is None:
            raise UnsupportedHost("hierarchical extends a trained table of positions and this model has none")
        n, rows = geometry.table.shape[0], self.rows(geometry)
        if not n <= rows <= n * n:
            raise BadOption(
                f"hierarchical: length={rows} must be from {n} to {n * n}, the square of the trained length"
            )

    def rows(self, geometry: Geometry) -> int:
        """Rows of the new table."""
        return self.length or round((self.factor or 2.0) * geometry.length)

    def table(self, geometry: Geometry) -> Tensor:
        self.fits(geometry)
        p = geometry.table.double()  # type: ignore[union-attr]
        n, rows = p.shape[0], self.rows(geometry)
        u = (p - self.alpha * p[0]) / (1 - self.alpha)
        where = torch.arange(rows, device=p.device)
        new = self.alpha * u[where // n] + (1 - self.alpha) * u[where % n]
        new[:n] = p  # what the equation gives, without its rounding
        return new.to(geometry.table.dtype)  # type: ignore[union-attr]
