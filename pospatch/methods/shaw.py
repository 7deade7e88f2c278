from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.geometry import Geometry
from pospatch.methods._base import Block, Contextual, Weights
from pospatch.methods._distance import distances
from pospatch.methods._options import choice, integer


@dataclass(frozen=True, kw_only=True)
class Shaw(Contextual):
    """Shaw's relative keys: q also meets a learned vector for the distance, the same for all heads of a layer.

    relative_key:        logits[m, n] = scaling * q[m] . (k[n] + table[r])
    relative_key_query:  logits[m, n] = scaling * (q[m] . k[n] + q[m] . table[r] + k[n] . table[r])
    r = clip(m - n, -max_distance, max_distance) + max_distance

    Source: Self-Attention with Relative Position Representations, arXiv 1803.02155, equations 4 and 5;
    relative_key_query: Improve Transformer Models with Better Relative Position Embeddings, arXiv 2009.13658, method 4.

    BERT checkpoints with position_embedding_type="relative_key", whose distance embeddings transformers 5 dropped, come back
    with `pospatch.load_distance_embeddings(model, path)`.

    Args:
        max_distance: distance in tokens from which all share one vector, 1 to 1048576; 16 in the paper. The old BERT
            checkpoints have their max_position_embeddings - 1.
        position_embedding_type: "relative_key" or "relative_key_query".

    Departs: no relative values (the paper's equation 3), which the paper finds to add nothing beside relative keys. Row r counts
        m - n as BERT does, the paper n - m. It starts at zero, so that the graft starts as no positions at all.
    """

    family: ClassVar[str] = "relative"
    source: ClassVar[str] = "Relative position representations, arXiv 1803.02155, equations 4 and 5"

    max_distance: int = integer(16, high=2**20)
    position_embedding_type: str = choice("relative_key", "relative_key", "relative_key_query")

    def weights(self, geometry: Geometry) -> dict[str, Tensor]:
        """table (2 * max_distance + 1, head_dim)."""
        return {"table": torch.zeros(2 * self.max_distance + 1, geometry.head_dim)}

    def logits(self, block: Block, weights: Weights, geometry: Geometry) -> Tensor:
        table = weights["table"].float().t()
        r = distances(block.query_positions, block.key_positions).clamp(-self.max_distance, self.max_distance)
        row = (r + self.max_distance)[:, None]
        added = _read(block.query.float() @ table, row)
        if self.position_embedding_type == "relative_key_query":
            added = added + _read(block.key.float() @ table, row.transpose(2, 3)).transpose(2, 3)
        return block.scores + geometry.scaling * added


def _read(products: Tensor, row: Tensor) -> Tensor:
    """(batch, heads, x, y) from products of each x with every row of the table, at rows (batch or 1, 1, x, y)."""
    return products.gather(-1, row.expand(products.shape[0], products.shape[1], -1, -1))
