from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pospatch.geometry import Geometry
from pospatch.methods._base import SummedBias, Weights
from pospatch.methods._content import gates
from pospatch.methods._options import number


@dataclass(frozen=True, kw_only=True)
class ForgettingAttention(SummedBias):
    """Forgetting attention (data-dependent ALiBi): each token says, head by head, how much of what lies before it is kept.

    bias[h, m, n] = sum over t = n + 1 .. m of log(sigmoid(weight[h] . x[t] + bias[h])), x the hidden states that enter
    the attention.

    Source: Forgetting Transformer, arXiv 2503.02130, equation 6.

    Args:
        initial_bias: where the forget gates' bias starts, in nats of the gate; 5.0, at which a token fades by 0.0067 nats,
            so that the start is almost no positions at all. The paper starts at 0.0, a fading of 0.69 nats per token.

    Departs: weight starts at zero. Only the attention of the paper, not its output gate and norms.

    Raises:
        UnsupportedHost: the attention is two-sided.
    """

    causal_only: ClassVar[bool] = True
    source: ClassVar[str] = "Forgetting Transformer, arXiv 2503.02130, equation 6"

    initial_bias: float = number(5.0, low=-100.0, high=100.0)

    def weights(self, geometry: Geometry) -> dict[str, Tensor]:
        weight = torch.zeros(geometry.heads, geometry.width)
        return {"weight": weight, "bias": torch.full((geometry.heads,), self.initial_bias)}

    def state(self, hidden: Tensor, weights: Weights, geometry: Geometry) -> Tensor:
        return logsigmoid(gates(hidden, weights["weight"], weights["bias"]))
