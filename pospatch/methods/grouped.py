from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._base import Forward, Index
from pospatch.methods._documents import documents
from pospatch.methods._options import integer, number


@dataclass(frozen=True, kw_only=True)
class Grouped(Index):
    """Grouped positions: neighbouring tokens share one position, so that a model reads further with the positions it has.

    position[n] = n // group_size

    Source: LongEmbed: Extending Embedding Models for Long Context Retrieval, arXiv 2404.12096, section 4.1.

    Args:
        group_size: g, tokens that share a position; 1 changes nothing. None is the paper's rule, for each document
            ceil(its tokens / trained length), so that short ones stay as they are to the bit; a cache cannot grow
            from one group size into the next, and that step raises.
        factor: length that the model reads afterwards / trained length, which the config then promises; only where
            group_size is None, 2 where it is not given.

    Departs: the default is a fixed group, so that cached decoding equals one pass at every length; the paper's rule goes
        by the longest of a batch, None goes by each document. On a rotary encoding the tokens of a group stand at
        distance 0.

    Raises:
        BadOption: factor beside a group size.
    """

    family: ClassVar[str] = "absolute"
    needs: ClassVar[str] = "nothing"
    source: ClassVar[str] = "LongEmbed, arXiv 2404.12096, section 4.1"

    group_size: int | None = integer(2, high=2**16, optional=True)
    factor: float | None = number(None, low=1.0, high=4096.0, optional=True)

    def check(self) -> None:
        if self.group_size is not None and self.factor is not None:
            raise BadOption(
                f"grouped: factor={self.factor} says how far group_size=None may reach, and group_size={self.group_size} "
                "reaches as many times the trained length; leave factor out"
            )

    @property
    def by_row(self) -> bool:  # type: ignore[override]
        return self.group_size is None

    def positions(self, positions: Tensor, geometry: Geometry, forward: Forward) -> Tensor:
        if self.group_size is not None:
            return positions // self.group_size
        first, length = documents(positions, forward.real)
        group = (length.clamp(min=1) - 1) // geometry.length + 1
        # two-sided attention has no cache that could grow
        if geometry.causal and ((first > 0) & ((first - 1) // geometry.length + 1 != group)).any():
            raise BadOption(
                f"grouped: this step grows a cached document beyond a multiple of the {geometry.length} trained positions, "
                "and its keys stand in smaller groups; run it again without the cache, or apply it with a fixed group_size"
            )
        return (positions // group).clamp(max=geometry.length - 1)  # only pads can stand further

    def target_length(self, geometry: Geometry) -> int:
        return self.group_size * geometry.length if self.group_size else round((self.factor or 2.0) * geometry.length)
