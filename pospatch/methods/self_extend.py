from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pospatch.geometry import Geometry
from pospatch.methods._base import Band, Bands
from pospatch.methods._math import identity, window_of
from pospatch.methods._options import integer


@dataclass(frozen=True, kw_only=True)
class SelfExtend(Bands):
    """Self-Extend: near tokens keep their distance, far ones are counted in groups, so no distance leaves the
    trained range.

    relative = m - n                                                where m - n < window
    relative = m // group_size + window - window // group_size - n // group_size    elsewhere

    Source: LLM Maybe LongLM: Self-Extend LLM Context Window Without Tuning, arXiv 2401.01325, equations 3 and 4.

    Args:
        group_size: tokens counted as one, 2 to 64 in the paper; 1 changes nothing.
        window: distance in tokens below which nothing changes, below the trained length; None is a quarter of it.

    Departs: the shift is rounded down, window // group_size; the authors' code divides without rounding, which gives
        far queries fractional positions where the group does not divide the window. On two-sided attention a key
        after its query gets the negative of the mirrored distance.

    Raises:
        BadOption: the window is not below the trained length.
        UnsupportedHost: the layer has no rotary encoding.
    """

    source: ClassVar[str] = "Self-Extend, arXiv 2401.01325, equations 3 and 4"

    group_size: int = integer(8)
    window: int | None = integer(None, optional=True)

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        window_of(self.name, self.window, geometry)

    def target_length(self, geometry: Geometry) -> int:
        window = window_of(self.name, self.window, geometry)
        return (geometry.length - window) * self.group_size + window

    def bands(self, geometry: Geometry) -> tuple[Band, ...]:
        window, group = window_of(self.name, self.window, geometry), self.group_size
        shift = window - window // group
        return (
            Band(0, window, identity, identity),
            Band(window, None, lambda m: m // group + shift, lambda n: n // group),
        )
