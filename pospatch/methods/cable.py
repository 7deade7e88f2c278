from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pospatch.geometry import Geometry
from pospatch.methods._base import SummedBias, Weights
from pospatch.methods._content import gates
from pospatch.methods._options import number


@dataclass(frozen=True, kw_only=True)
class Cable(SummedBias):
    """CABLE: context-aware biases, a distance to which each token adds a length of its own, head by head.

    bias[h, m, n] = -sum over t = n + 1 .. m of softplus(weight[h] . x[t] + bias[h]), x the hidden states that enter the
    attention.

    Source: Context-aware Biases for Length Extrapolation, arXiv 2503.08067, section 3, as in the authors' code: the
    difference of two running sums of -softplus.

    Args:
        initial_bias: where the bias starts; 0.0 as in the paper, a fading of 0.69 nats per token in every head. -5.0
            makes it 0.0067, almost no positions at all.

    Departs: weight starts at zero, where the authors draw it small. Since softplus(z) = -log(sigmoid(-z)), the formula is
        that of `fox` with its weights' sign turned; the two differ in where they start. The two-sided form of the paper's
        BERT experiments is not in the authors' code and is not offered.

    Raises:
        UnsupportedHost: the attention is two-sided.
    """

    causal_only: ClassVar[bool] = True
    source: ClassVar[str] = "CABLE, arXiv 2503.08067, section 3 and the authors' code"

    initial_bias: float = number(0.0, low=-100.0, high=100.0)

    def weights(self, geometry: Geometry) -> dict[str, Tensor]:
        weight = torch.zeros(geometry.heads, geometry.width)
        return {"weight": weight, "bias": torch.full((geometry.heads,), self.initial_bias)}

    def state(self, hidden: Tensor, weights: Weights, geometry: Geometry) -> Tensor:
        return -softplus(gates(hidden, weights["weight"], weights["bias"]))
