from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pospatch.geometry import Geometry
from pospatch.methods._base import Band, Bands
from pospatch.methods._math import identity, window_of
from pospatch.methods._options import integer


@dataclass(frozen=True, kw_only=True)
class ReRoPE(Bands):
    """ReRoPE: distances are cut off at the window, so that all tokens beyond it look equally far.

    relative = min(m - n, window)

    Source: Rectified Rotary Position Embeddings (bojone/rerope, 2023).

    Args:
        window: the largest distance in tokens, below the trained length; None is a quarter of it (the author uses
            512 and 1024 for 2048 and 4096).

    Departs: the author's code also scales queries by the log of their position; that is the method `logn`, which
        composes.

    Raises:
        BadOption: the window is not below the trained length.
        UnsupportedHost: the layer has no rotary encoding.
    """

    source: ClassVar[str] = "ReRoPE (bojone/rerope, 2023)"

    window: int | None = integer(None, optional=True)

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        window_of(self.name, self.window, geometry)

    def bands(self, geometry: Geometry) -> tuple[Band, ...]:
        window = window_of(self.name, self.window, geometry)
        return (
            Band(0, window, identity, identity),
            Band(window, None, lambda m: torch.full_like(m, window), torch.zeros_like),
        )
