from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._base import Scaling, Weights
from pospatch.methods._math import standing, standing_inv_freq, turn
from pospatch.methods._options import integer, number, numbers

__all__ = ["MsPoE", "head_order"]


@dataclass(frozen=True, kw_only=True)
class MsPoE(Scaling):
    """Ms-PoE: each head reads positions at its own scale, so that some heads see the middle of the context as near.

    position of head h = n / ratio[h]; ratio[h] = min_ratio + (max_ratio - min_ratio) * rank[h] / heads

    Source: Found in the Middle: Multi-scale Positional Encoding, arXiv 2403.04797, section 4, equation 3.

    Args:
        min_ratio: scale of the head of rank 0, at least 1; 1.2 in the paper.
        max_ratio: bound that the scales approach, at least min_ratio; 1.8 in the paper.
        first_layer: layers below it stay, 2 in the paper.
        head_order: rank of each key-value head, a permutation of 0 .. kv_heads - 1, for all layers; or of each
            layer, one after the other. None ranks heads by index. `head_order` in this module measures ranks.

    Departs: ranks are an option, because the authors' code takes them from the first prompt and keeps them for every
        later one, which makes a result depend on what was read before; it also uses an argsort where ranks are
        meant. Heads that share a key share a ratio, else distances would no longer be relative. rank is divided by
        kv_heads.

    Raises:
        BadOption: max_ratio below min_ratio, first_layer beyond the last layer or beyond all of `layers`, or head_order is
            no permutation.
        UnsupportedHost: the layer has no rotary encoding.
    """

    family: ClassVar[str] = "training-free"
    spectral: ClassVar[bool] = False
    source: ClassVar[str] = "Ms-PoE, arXiv 2403.04797, equation 3"

    min_ratio: float = number(1.2, low=1.0)
    max_ratio: float = number(1.8, low=1.0)
    first_layer: int = integer(2, low=0)
    head_order: tuple[float, ...] | None = numbers(None, above=-1.0, optional=True)

    def check(self) -> None:
        if self.max_ratio < self.min_ratio:
            raise BadOption(f"{self.name}: max_ratio={self.max_ratio:g} must be at least min_ratio={self.min_ratio:g}")

    @classmethod
    def example(cls, options: dict[str, Any], geometry: Geometry) -> dict[str, Any]:
        return {**options, "first_layer": min(2, geometry.layers - 1)}

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        if self.first_layer >= geometry.layers:
            raise BadOption(
                f"{self.name}: first_layer={self.first_layer} leaves no layer of {geometry.layers}; give a lower first_layer="
            )
        if max(self.chosen(geometry.layers)) < self.first_layer:
            raise BadOption(
                f"{self.name}: layers={list(self.chosen(geometry.layers))} all lie below first_layer={self.first_layer}, where "
                "nothing changes; choose later layers or give a lower first_layer="
            )
        self.ratios(geometry)

    def ratios(self, geometry: Geometry) -> Tensor:
        """Scale of each key-value head, float32 (kv_heads,)."""
        heads = geometry.kv_heads
        if geometry.layer < self.first_layer:
            return torch.ones(heads)
        ranks = torch.tensor(self.head_order or range(heads), dtype=torch.float32)
        if len(ranks) == heads * geometry.layers:
            ranks = ranks[geometry.layer * heads : (geometry.layer + 1) * heads]
        if sorted(ranks.tolist()) != list(range(heads)):
            raise BadOption(
                f"{self.name}: head_order must hold each of 0 to {heads - 1} once (kv_heads={heads}), or that for each "
                f"of the {geometry.layers} layers; got {list(self.head_order or ())}"
            )
        return self.min_ratio + (self.max_ratio - self.min_ratio) * ranks / heads

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        """The spectrum of ratio 1; each head divides it by its ratio."""
        rotation = standing(self.name, geometry)
        return standing_inv_freq(rotation), rotation.attention_factor

    def rotate(
        self,
        x: Tensor,
        positions: Tensor,
        side: str,
        weights: Weights,
        geometry: Geometry,
        length: Tensor | None = None,
    ) -> Tensor:
        inv_freq, amplitude = self.frequencies(geometry)
        ratios = self.ratios(geometry).to(x.device).repeat_interleave(x.shape[1] // geometry.kv_heads)
        scaled = positions[:, None, :].float() / ratios[:, None]
        return turn(x, scaled[..., None] * inv_freq.to(x.device), amplitude)


def head_order(attention: Tensor, kv_heads: int) -> list[int]:
    """Ranks of the key-value heads by how many keys stand out to the last query, most first.

    Args:
        attention: weights of one layer for one prompt, (heads, query, key); rows sum to 1.
        kv_heads: key-value heads; the query heads of one count together.

    A key stands out where its weight is above 3 times the mean of the row.
    """
    last = attention[:, -1].float()
    share = (last > 3 * last.mean(dim=-1, keepdim=True)).float().mean(dim=-1)
    share = share.reshape(kv_heads, -1).mean(dim=-1)
    return share.argsort(descending=True, stable=True).argsort().tolist()
