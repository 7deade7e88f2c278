from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.geometry import Geometry
from pospatch.methods._base import Forward, Index
from pospatch.methods._draw import tokens_of, warn_full
from pospatch.methods._options import integer


@dataclass(frozen=True, kw_only=True)
class PoSE(Index):
    """PoSE: in training, the second part of each window is moved far away, so that short windows train long distances.

    position[n] = n                          for n < first
    position[n] = n + skip                   for n >= first
    first ~ U{1 .. (C + 1) // 2}, skip ~ U{0 .. length - C}, C the tokens of the window; new for each sequence and step

    In evaluation positions are the true ones, to the bit. Put beside the method that reaches the length:
    apply(model, ["yarn", "pose"], factor=4).

    Source: PoSE: Efficient Context Window Extension of LLMs via Positional Skip-wise Training, arXiv 2309.10400,
        section 3.2, with two chunks, as the authors' training code draws them.

    Args:
        length: tokens that the positions of training reach; None is what the model reads with the methods that stand
            beside this one, the trained length where there is none. Draws come from torch's default generator.

    Departs: the text of the second part is the one that follows; the authors also take it from later in the document.
        Windows of packed documents (positions that start again) share one draw a row.

    Raises:
        BadOption: length beyond the rows of the host's table.
    """

    family: ClassVar[str] = "positions"
    source: ClassVar[str] = "PoSE, arXiv 2309.10400, section 3.2"
    training_only: ClassVar[bool] = True

    length: int | None = integer(None, low=2, high=2**22, optional=True)

    def positions(self, positions: Tensor, geometry: Geometry, forward: Forward) -> Tensor:
        draw = forward.generator()
        if draw is None:
            return positions
        reach = self.target_length(geometry)
        warn_full(self.name, positions, reach)
        tokens = tokens_of(positions, forward)
        share = torch.rand(2, tokens.shape[0], 1, generator=draw, dtype=torch.float64).to(positions.device)
        first = 1 + (share[0] * ((tokens + 1) // 2)).long()
        skip = (share[1] * (reach - tokens + 1).clamp(min=1)).long()
        return torch.where(
            positions < first, positions, (positions + skip).clamp(max=max(reach, positions.shape[1]) - 1)
        )

    def furthest(self, geometry: Geometry) -> int:
        return self.target_length(geometry)

    def target_length(self, geometry: Geometry) -> int:
        return self.length or geometry.length
