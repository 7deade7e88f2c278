"""What a method may know about one attention layer: shapes, trained length and what rotates there now; no host, no module."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Geometry", "Rotation"]


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """The rotary encoding that stands in an attention layer, native or put there by `rope`.

    Args:
        dim: rotated dimensions of each head, even.
        theta: base of the frequencies.
        inv_freq: frequencies in radians per token, float32, shape (dim // 2,).
        attention_factor: amplitude of cos and sin.
        rope_type: the name transformers gives it; "default" means inv_freq = theta ** (-2i / dim) exactly.
        layout: which dimensions turn together, "half" (i, i + half) or "interleaved" (2i, 2i + 1), with " tail" where the
            rotated ones are the last of the head; "unknown" where no such formula gives the host's q.
        fixed: False where the host changes the frequencies with the length of its input.
    """

    dim: int
    theta: float
    inv_freq: torch.Tensor
    attention_factor: float = 1.0
    rope_type: str = "default"
    layout: str = "half"
    fixed: bool = True


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Shapes and facts of one attention layer.

    Args:
        layer: index of this layer, from 0.
        layers: number of layers in its stack.
        heads: query heads.
        kv_heads: key and value heads; divides `heads`.
        head_dim: size of one head.
        width: size of the hidden states.
        length: trained length in tokens.
        causal: True where a query sees only keys at or before it.
        scaling: factor on q.k before the softmax.
        rotation: the rotary encoding there now, or None.
        table: the trained table of positions without its offset rows, shape (rows, width), or None.
        window: tokens that a query of this layer sees at most, itself included, or None where nothing limits it.
        grid: rows and columns of patches for a vision encoder, or None.
        prefix: tokens before the first patch (class token, registers).
        suffix: tokens behind the last patch.
    """

    heads: int
    head_dim: int
    width: int
    length: int
    kv_heads: int = 0
    layer: int = 0
    layers: int = 1
    causal: bool = True
    scaling: float = 0.0
    rotation: Rotation | None = None
    table: torch.Tensor | None = None
    window: int | None = None
    grid: tuple[int, ...] | None = None
    prefix: int = 0
    suffix: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        object.__setattr__(self, "scaling", self.scaling or self.head_dim**-0.5)

    def with_(self, **changes: Any) -> Geometry:
        """A copy with some fields replaced."""
        return replace(self, **changes)
