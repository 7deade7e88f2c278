from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._base import Band, Bands
from pospatch.methods._math import identity
from pospatch.methods._options import integer, number


@dataclass(frozen=True, kw_only=True)
class StringShift(Bands):
    """STRING: far distances, which training saw rarely, are shifted down onto the well-trained ones.

    relative = m - n where m - n < shift, else m - n - shift + window

    Source: Why Does the Effective Context Length of LLMs Fall Short?, arXiv 2410.18745, section 4 (HKU STRING; the
        other STRING is `cayley_string`).

    Args:
        shift: S, the distance in tokens from which far ones are moved, below the trained length; None is a third of
            it (the paper: a quarter to 0.4).
        window: W, the near distances in tokens that far ones never take, below `shift`; None is 128, and at most
            half of `shift`. The paper: 256 or 512 where fluency suffers.
        attention_factor: its square multiplies the logits, above 0; the authors' 1 + 0.1 * ln(2).

    Departs: a key at distance `shift` is far and counted once; the authors' prefill counts it in both ranges. The
        trained length stays the limit: the method makes better use of it.

    Raises:
        BadOption: window is not below shift, or shift not below the trained length.
        UnsupportedHost: the layer has no rotary encoding.
    """

    source: ClassVar[str] = "STRING, arXiv 2410.18745, section 4"

    shift: int | None = integer(None, optional=True)
    window: int | None = integer(None, low=0, optional=True)
    attention_factor: float = number(1.0 + 0.1 * math.log(2.0), above=0.0)

    def sizes(self, geometry: Geometry) -> tuple[int, int]:
        """(shift, window) in tokens."""
        shift = self.shift or max(1, geometry.length // 3)
        window = min(128, shift // 2) if self.window is None else self.window
        if window >= shift or shift >= geometry.length:
            raise BadOption(
                f"{self.name}: window={window} must be below shift={shift}, and that below the trained length "
                f"{geometry.length}"
            )
        return shift, window

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        self.sizes(geometry)

    def bands(self, geometry: Geometry) -> tuple[Band, ...]:
        shift, window = self.sizes(geometry)
        scale = self.attention_factor**2
        return (
            Band(0, shift, identity, identity, scale),
            Band(shift, None, lambda m: m - shift + window, identity, scale),
        )
