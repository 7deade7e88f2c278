from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.geometry import Geometry
from pospatch.methods._base import Bias, Weights
from pospatch.methods._distance import distances, linear_start
from pospatch.methods._options import flag, integer, number

EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class FIRE(Bias):
    """Functional interpolation for relative positions: a small network reads how far back a key is, as a share of how far
    back a key can be, so that longer texts stay within what it has seen.

    bias[:, m, n] = out @ relu(weight * x + shift),  x = psi(m - n) / psi(max(m, threshold))
    psi(x) = ln(1 + |c| * x),  threshold = |multiplier * threshold_length|

    Source: Functional Interpolation for Relative Positions, arXiv 2310.04418, equations 8 and 9.

    Args:
        hidden: width of the network, 1 to 4096; 32 in the paper.
        c: start of the learned rate of psi, above 0; 0.1 in the authors' code.
        threshold_length: length in tokens below which the share is of this length rather than of m; 512 in the authors'
            code. It is learned through `multiplier`, which starts at 1.
        zero_init: start as no positions at all (`out` is zero), which is the identity over `nope`; False starts as the paper
            does, from a random network.
        seed: of the random start; layers differ.

    Departs: no shift in the last layer, which softmax would ignore. m is the query's true position, not its row in a matrix
        of the current length, so that decoding with a cache equals one pass.
    """

    causal_only: ClassVar[bool] = True
    source: ClassVar[str] = "FIRE, arXiv 2310.04418, equations 8 and 9"

    hidden: int = integer(32, high=4096)
    c: float = number(0.1, above=0.0)
    threshold_length: int = integer(512)
    zero_init: bool = flag(True)
    seed: int = integer(0, low=0)

    def weights(self, geometry: Geometry) -> dict[str, Tensor]:
        """c and multiplier (1,), weight and shift (hidden,), out (heads, hidden)."""
        generator = torch.Generator("cpu").manual_seed(self.seed * 100_003 + geometry.layer)
        weight, shift = linear_start(2 * self.hidden, 1, generator).reshape(2, self.hidden)
        out = linear_start(geometry.heads, self.hidden, generator)
        return {
            "c": torch.tensor([self.c]),
            "multiplier": torch.ones(1),
            "weight": weight.clone(),
            "shift": shift.clone(),
            "out": torch.zeros_like(out) if self.zero_init else out,
        }

    def shares(self, query_positions: Tensor, key_positions: Tensor, c: Tensor, multiplier: Tensor) -> Tensor:
        """x, float32 (batch, query, key); keys after their query count as distance 0."""
        r = distances(query_positions, key_positions).clamp(min=0).float()
        threshold = (multiplier * self.threshold_length).abs()
        most = torch.maximum(query_positions.float(), threshold)
        return torch.log1p(c.abs() * r) / (torch.log1p(c.abs() * most)[:, :, None] + EPSILON)

    def bias(self, query_positions: Tensor, key_positions: Tensor, weights: Weights, geometry: Geometry) -> Tensor:
        w = {name: value.float() for name, value in weights.items()}
        x = self.shares(query_positions, key_positions, w["c"], w["multiplier"])
        batch, queries, keys = x.shape
        if torch.compiler.is_compiling():  # which units switch is data, which a graph must not depend on
            hidden = torch.relu(x.flatten()[None] * w["weight"][:, None] + w["shift"][:, None])
            return (w["out"] @ hidden).view(-1, batch, queries, keys).transpose(0, 1)
        rows, values = self.units(x.reshape(1, -1), w)
        return (rows @ values).view(-1, batch, queries, keys).transpose(0, 1)

    def units(self, x: Tensor, w: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The same network with fewer units: (heads, units) and (units, count) whose product it is, for shares x (1, count).

        x lies in [0, 1]: a unit that is above zero at both ends is a line there, and lines add up to one; one that is below zero
        at both ends gives nothing. Only those that switch in between are computed.
        """
        start, end = w["shift"], w["weight"] + w["shift"]
        line, switch = ((start >= 0) & (end >= 0)).detach(), (start.sign() * end.sign() < 0).detach()
        out = w["out"]
        slope, level = out[:, line] @ w["weight"][line], out[:, line] @ start[line]
        rows = torch.cat((slope[:, None], level[:, None], out[:, switch]), dim=1)
        own = torch.stack((w["weight"][switch], start[switch]), dim=1)
        lines = torch.cat((torch.eye(2, device=x.device), own), dim=0) @ torch.cat((x, torch.ones_like(x)), dim=0)
        return rows, lines.relu_()  # x and 1, the first two, stay as they are
