from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._base import Band, Bands
from pospatch.methods._math import identity
from pospatch.methods._options import integer


@dataclass(frozen=True, kw_only=True)
class Streaming(Bands):
    """StreamingLLM: a query sees the first tokens and the latest ones, at the places they would have in a cache of
    just those.

    visible where n < sinks or m - n < window
    relative = m - n where m - n < window, else min(m, sinks + window - 1) - n

    This is no extension of context: what lies between is not seen, and leaves a dynamic cache. It keeps generation stable
    without end, in bounded memory.

    Source: Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453, section 3.2.

    Args:
        sinks: first tokens that stay visible, 4 in the paper.
        window: latest tokens that are visible, the query among them; None is the trained length less `sinks`.

    Departs: keys are let go up to 256 tokens later than in the paper, and masked until then, so that a cache may be cut back by
    as many; pads on the left stay, and a static or quantized cache keeps all keys, masked.

    Raises:
        BadOption: sinks + window exceed the trained length.
        UnsupportedHost: the layer has no rotary encoding, or attends both ways.
    """

    causal_only: ClassVar[bool] = True
    forgets: ClassVar[bool] = True
    source: ClassVar[str] = "StreamingLLM, arXiv 2309.17453, section 3.2"

    sinks: int = integer(4, low=0)
    window: int | None = integer(None, optional=True)

    def size(self, geometry: Geometry) -> int:
        """The window in force, in tokens."""
        window = max(1, geometry.length - self.sinks) if self.window is None else self.window
        if self.sinks + window > geometry.length:
            raise BadOption(
                f"{self.name}: sinks={self.sinks} and window={window} must sum to the trained length "
                f"{geometry.length} at most"
            )
        return window

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        self.size(geometry)

    def visible(self, query_positions: Tensor, key_positions: Tensor, geometry: Geometry) -> Tensor:
        near = query_positions[:, :, None] - key_positions[:, None, :] < self.size(geometry)
        return near | (key_positions < self.sinks)[:, None, :]

    def bands(self, geometry: Geometry) -> tuple[Band, ...]:
        window = self.size(geometry)
        last = self.sinks + window - 1
        return (
            Band(0, window, identity, identity),
            Band(window, None, lambda m: m.clamp(max=last), identity),
        )
