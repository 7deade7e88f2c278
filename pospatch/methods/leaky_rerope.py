from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pospatch.geometry import Geometry
from pospatch.methods._base import Band, Bands
from pospatch.methods._math import identity, window_of
from pospatch.methods._options import integer, number


@dataclass(frozen=True, kw_only=True)
class LeakyReRoPE(Bands):
    """Leaky ReRoPE: beyond the window distances grow `factor` times slower.

    relative = m - n where m - n < window, else window + (m - n - window) / factor

    Source: Leaky ReRoPE (bojone/rerope, 2023).

    Args:
        factor: how much slower distances grow beyond the window, at least 1; the author's k = 16. 1 changes nothing.
        window: distance in tokens below which nothing changes, below the trained length; None is a quarter of it.

    Departs: as `rerope`: the log scale on queries is the method `logn`.

    Raises:
        BadOption: the window is not below the trained length.
        UnsupportedHost: the layer has no rotary encoding.
    """

    source: ClassVar[str] = "Leaky ReRoPE (bojone/rerope, 2023)"

    factor: float = number(16.0, low=1.0)
    window: int | None = integer(None, optional=True)

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        window_of(self.name, self.window, geometry)

    def target_length(self, geometry: Geometry) -> int:
        window = window_of(self.name, self.window, geometry)
        return int((geometry.length - window) * self.factor) + window

    def bands(self, geometry: Geometry) -> tuple[Band, ...]:
        window, factor = window_of(self.name, self.window, geometry), self.factor
        return (
            Band(0, window, identity, identity),
            Band(window, None, lambda m: (m - window) / factor + window, lambda n: n / factor),
        )
