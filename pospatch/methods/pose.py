from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.methods._draw import Drawn


@dataclass(frozen=True, kw_only=True)
class PoSE(Drawn):
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

    source: ClassVar[str] = "PoSE, arXiv 2309.10400, section 3.2"

    def drawn(self, positions: Tensor, tokens: Tensor, reach: int, draw: torch.Generator) -> Tensor:
        share = torch.rand(2, tokens.shape[0], 1, generator=draw, dtype=torch.float64).to(positions.device)
        first = 1 + (share[0] * ((tokens + 1) // 2)).long()
        skip = (share[1] * (reach - tokens + 1).clamp(min=1)).long()
        return torch.where(
            positions < first, positions, (positions + skip).clamp(max=max(reach, positions.shape[1]) - 1)
        )
