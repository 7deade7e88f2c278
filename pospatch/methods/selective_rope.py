from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from pospatch.errors import BadOption, UnsupportedHost
from pospatch.geometry import Geometry
from pospatch.methods._base import SummedRotation, Weights
from pospatch.methods._content import linear, seeded
from pospatch.methods._math import rotary_inv_freq
from pospatch.methods._options import flag, integer, number

EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class SelectiveRoPE(SummedRotation):
    """Selective RoPE: a rotary encoding whose angles each token chooses, so that a pair turns by what lies between.

    q[m] and k[n] turn by sum over t = 0 .. m (or n) of temperature[i] * gate[t] * phi[t, i], so that a logit knows the
    angles of t = n + 1 .. m alone.
    phi[t] = sum over j < conv_size of conv[j] * up(down(y[t - conv_size + 1 + j])), y the hidden states that enter the
    attention, each of their `heads` pieces divided by its norm
    temperature[i] = max_angle * rope_theta ** (-2 * i / head_dim); gate[t] = sigmoid(gate . y[t] + gate_bias), or 1

    Source: Selective Rotary Position Embedding, arXiv 2511.17388, as in the authors' code (their defaults).

    Args:
        rank: width of the bottleneck between down and up, 1 to 4096; 16 in the authors' code.
        conv_size: tokens that an angle is made from, 1 to 16; 1 is no convolution. None is 4, as in the authors' code, and 1
            in layers with a sliding window: their cache begins without the tokens that its first angles are made from.
        rope_theta: base of the temperatures, at least 1; 500000 in the authors' code.
        max_angle: temperature of the fastest pair, above 0; 1.0 in the authors' code.
        gate: a gate for each token and head on its angles; off in the authors' code.
        seed: of the numbers that `down` starts from.

    Departs: `up` starts at zero and `conv` at its last tap, so that the start is no positions at all. Query heads that
        share a key share their angles. The sums run in float64.

    Raises:
        BadOption: head_dim is odd.
        UnsupportedHost: the attention is two-sided, or has a sliding window and conv_size is given above 1, or heads do
            not divide the width.
    """

    causal_only: ClassVar[bool] = True
    source: ClassVar[str] = "Selective RoPE, arXiv 2511.17388 and the authors' code"

    rank: int = integer(16, high=4096)
    conv_size: int | None = integer(None, high=16, optional=True)
    rope_theta: float = number(500000.0, low=1.0)
    max_angle: float = number(1.0, above=0.0)
    gate: bool = flag(False)
    seed: int = integer(0, low=0)

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        if geometry.head_dim % 2:
            raise BadOption(f"{self.name} turns pairs; head_dim={geometry.head_dim} is odd and must be even")
        if geometry.width % geometry.heads:
            raise UnsupportedHost(
                f"{self.name} takes the norm of each of the {geometry.heads} heads' pieces of the hidden states, "
                f"and they do not divide their width of {geometry.width}"
            )
        if geometry.window is not None and self.conv_size is not None and self.conv_size > 1:
            raise UnsupportedHost(
                f"{self.name}: conv_size={self.conv_size} makes an angle from so many tokens, and layer {geometry.layer} keeps "
                f"a window of {geometry.window} that begins without them; leave conv_size out"
            )

    def taps(self, geometry: Geometry) -> int:
        """Tokens that an angle of this layer is made from."""
        return self.conv_size or (4 if geometry.window is None else 1)

    def weights(self, geometry: Geometry) -> dict[str, Tensor]:
        count = geometry.kv_heads * geometry.head_dim // 2
        std, seed = geometry.width**-0.5, self.seed * 100_003 + geometry.layer
        conv = torch.zeros(count, self.taps(geometry))
        conv[:, -1] = 1.0
        found = {
            "down": seeded(self.rank, geometry.width, std=std, seed=seed),
            "up": torch.zeros(count, self.rank),
            "conv": conv,
        }
        if self.gate:
            found |= {
                "gate": torch.zeros(geometry.kv_heads, geometry.width),
                "gate_bias": torch.zeros(geometry.kv_heads),
            }
        return found

    def state(self, hidden: Tensor, weights: Weights, geometry: Geometry) -> Tensor:
        """Angles before the convolution, and the gate after them where there is one."""
        y = hidden.float().unflatten(-1, (geometry.heads, -1))
        y = (y * torch.rsqrt(y.square().sum(dim=-1, keepdim=True) + EPSILON)).flatten(-2)
        phi = linear(linear(y, weights["down"]), weights["up"])
        phi = phi.unflatten(-1, (geometry.kv_heads, -1)).transpose(1, 2)
        if not self.gate:
            return phi
        gate = linear(y, weights["gate"], weights["gate_bias"]).sigmoid()
        return torch.cat((phi, gate.transpose(1, 2)[..., None]), dim=-1)

    def angles(self, state: Tensor, weights: Weights, geometry: Geometry, documents: Tensor | None = None) -> Tensor:
        half = geometry.head_dim // 2
        phi = state[..., :half].float()
        taps, length = self.taps(geometry), phi.shape[2]
        conv = weights["conv"].float().unflatten(0, (geometry.kv_heads, half))
        padded = pad(phi, (0, 0, taps - 1, 0))
        shifted = [padded[:, :, tap : tap + length] * conv[:, None, :, tap] for tap in range(taps)]
        if documents is not None:
            before = pad(documents, (taps - 1, 0), value=-1)
            own = [before[:, tap : tap + length] == documents for tap in range(taps)]
            shifted = [each * same[:, None, :, None] for each, same in zip(shifted, own, strict=True)]
        phi = torch.stack(shifted).sum(dim=0) if taps > 1 else shifted[0]
        if self.gate:
            phi = phi * state[..., half:].float()
        return phi * (self.max_angle * rotary_inv_freq(self.rope_theta, geometry.head_dim).to(phi.device))
