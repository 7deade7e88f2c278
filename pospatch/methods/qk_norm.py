from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.geometry import Geometry
from pospatch.methods._base import Norm, Weights
from pospatch.methods._options import choice, number


@dataclass(frozen=True, kw_only=True)
class QKNorm(Norm):
    """QK norm: each head of q and k is brought to one size, times a learned gain, so that logits stay bounded.

    x[h] becomes gain[h] * x[h] / sqrt(mean(x[h]^2) + eps), for q and for k, each with gains of its own

    Source: Query-Key Normalization for Transformers, arXiv 2010.04245; over all heads it is what DroPE, arXiv 2512.12167,
        may recalibrate with: apply(model, ["nope", ("qk_norm", {"over": "all"})]).

    Args:
        over: the mean is one of each "head" (the default), as in Qwen3, or one of "all" heads, as in OLMo 2 and DroPE.
        gain: what the learned gains start from, above 0. With 1, and "head", logits lie within sqrt(head_dim)
            of zero.
        eps: added to the mean square, above 0.

    Departs: one gain for each head instead of one for each dimension, so that the norm may come after a rotation as well as
        before it, and keys that a cache holds rotated are scaled alike.
    """

    source: ClassVar[str] = "QK norm, arXiv 2010.04245; DroPE, arXiv 2512.12167"

    over: str = choice("head", "head", "all")
    gain: float = number(1.0, above=0.0)
    eps: float = number(1e-6, above=0.0)

    def weights(self, geometry: Geometry) -> dict[str, Tensor]:
        """The gains of q's heads and of k's, (heads,) and (kv_heads,)."""
        return {
            "query": torch.full((geometry.heads,), self.gain),
            "key": torch.full((geometry.kv_heads,), self.gain),
        }

    def normed(self, x: Tensor, side: str, weights: Weights) -> Tensor:
        mean = x.float().square().mean(-1 if self.over == "head" else (1, 3), keepdim=True)
        return (x.float() * weights[side].float()[:, None, None] * torch.rsqrt(mean + self.eps)).to(x.dtype)
