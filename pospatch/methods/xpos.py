from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._base import Block, Contextual, Weights
from pospatch.methods._math import rotary_inv_freq, turn
from pospatch.methods._options import number

LOG_RANGE = 30.0  # largest logarithm of a factor among queries that share a centre: far inside float32


@dataclass(frozen=True, kw_only=True)
class XPos(Contextual):
    """xPos: a rotary encoding whose pairs also fade with distance, the fast pairs more.

    logits[m, n] = scaling * sum_i zeta[i] ** ((m - n) / scale_base) * (q_i rotated by m * inv_freq[i]) . (k_i
    rotated by n * inv_freq[i]) zeta[i] = (2 * i + gamma * dim) / ((1 + gamma) * dim)

    Source: A Length-Extrapolatable Transformer, arXiv 2212.10554, equations 13 to 16.

    Args:
        rope_theta: base of the frequencies, above 1; 10000 in the paper.
        scale_base: tokens over which a pair fades by zeta, above 0; 512 in the paper.
        gamma: evens out the fading of the pairs, above 0; 0.4 in the paper.

    Departs: the factor is taken relative to the latest query of a block, never as zeta ** (n / scale_base) on q and
        its inverse on k, which leaves float32 at some 36000 tokens. Keys are cached without rotation.

    Raises:
        BadOption: head_dim is odd.
        UnsupportedHost: the attention is two-sided (a key after its query would grow without bound).
    """

    family: ClassVar[str] = "rotary"
    causal_only: ClassVar[bool] = True
    source: ClassVar[str] = "xPos, arXiv 2212.10554, equations 13 to 16"

    rope_theta: float = number(10000.0, above=1.0)
    scale_base: float = number(512.0, above=0.0)
    gamma: float = number(0.4, above=0.0)

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        if geometry.head_dim % 2:
            raise BadOption(f"{self.name} turns pairs; head_dim={geometry.head_dim} is odd and must be even")

    def zeta(self, dim: int) -> Tensor:
        """Fading of each pair over scale_base tokens, in (0, 1), float32 (dim / 2,)."""
        pairs = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu")
        return (pairs + self.gamma * dim) / ((1 + self.gamma) * dim)

    def logits(self, block: Block, weights: Weights, geometry: Geometry) -> Tensor:
        where = block.query_positions
        span = LOG_RANGE * self.scale_base / -float(self.zeta(geometry.head_dim)[0].log())
        if where.shape[1] > 1 and float(where.max() - where.min()) > span:
            half = where.shape[1] // 2
            parts = [self.logits(_rows(block, rows), weights, geometry) for rows in (slice(0, half), slice(half, None))]
            return torch.cat(parts, dim=2)
        centre = where.max(dim=1, keepdim=True).values
        query = self._side(block.query, where, where - centre, geometry.head_dim)
        key = self._side(block.key, block.key_positions, centre - block.key_positions, geometry.head_dim)
        return torch.matmul(query, key.transpose(2, 3)) * geometry.scaling

    def _side(self, x: Tensor, positions: Tensor, exponent: Tensor, dim: int) -> Tensor:
        """x rotated at its positions, each pair times zeta ** (exponent / scale_base).

        The bound above LOG_RANGE is met only by keys after all queries: they are masked, and stay finite until then.
        """
        inv_freq, zeta = rotary_inv_freq(self.rope_theta, dim).to(x.device), self.zeta(dim).to(x.device)
        fade = (zeta.log() * (exponent[..., None].float() / self.scale_base)).clamp(max=LOG_RANGE + 10).exp()[:, None]
        turned = turn(x.float(), positions[:, None, :, None].float() * inv_freq)
        return turned * torch.cat((fade, fade), dim=-1)


def _rows(block: Block, rows: slice) -> Block:
    allowed = block.allowed if block.allowed.shape[2] == 1 else block.allowed[:, :, rows]
    return Block(
        query=block.query[:, :, rows],
        key=block.key,
        scores=block.scores[:, :, rows],
        query_positions=block.query_positions[:, rows],
        key_positions=block.key_positions,
        allowed=allowed,
    )
