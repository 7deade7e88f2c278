from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.geometry import Geometry
from pospatch.methods._base import Block, Contextual, Weights
from pospatch.methods._options import integer


@dataclass(frozen=True, kw_only=True)
class CoPE(Contextual):
    """Contextual position encoding: each query counts the keys back to one, weighing each by its own attention to it.

    logits[m, n] = score[m, n] + q[m] . e(p[m, n])
    p[m, n] = min(sum over t = n .. m of sigmoid(score[m, t]), max_position - 1)
    score[m, n] = scaling * q[m] . k[n]; e(p) lies between rows floor(p) and ceil(p) of the learned table.

    Source: Contextual Position Encoding, arXiv 2405.18719, equations 3 to 5 and the code listing.

    Args:
        max_position: rows of the table, 2 to 65536; further keys share the last one. 64, which the paper finds enough for
            contexts of 1024 tokens; x-transformers has 16.

    Departs: the table, shared by the heads of a layer, starts at zero as in the paper's listing: at first the model is the
        one without positions, to the last rounding. Keys outside a sliding window are not counted, since they are not
        seen. A host's softcap acts on the sum.

    Raises:
        UnsupportedHost: the attention is two-sided.
    """

    causal_only: ClassVar[bool] = True
    source: ClassVar[str] = "Contextual Position Encoding, arXiv 2405.18719, equations 3 to 5"

    max_position: int = integer(64, low=2, high=2**16)

    def weights(self, geometry: Geometry) -> dict[str, Tensor]:
        return {"table": torch.zeros(self.max_position, geometry.head_dim)}

    def planes(self, geometry: Geometry) -> int:
        return 6

    def logits(self, block: Block, weights: Weights, geometry: Geometry) -> Tensor:
        gates = block.scores.sigmoid().masked_fill(~block.allowed, 0.0)
        # from the query backwards: a difference of sums from the start would lose the near keys of a long sequence
        position = gates.flip(-1).cumsum(dim=-1).flip(-1).clamp(max=self.max_position - 1)
        low = position.floor()
        steps = torch.matmul(block.query.float(), weights["table"].float().t())
        below = steps.gather(-1, low.long())
        above = steps.gather(-1, position.ceil().long())
        return block.scores + below + (position - low) * (above - below)
