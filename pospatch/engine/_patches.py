"""Where the patches of an image stand among the tokens of a vision encoder: seen in a forward, not guessed from a family."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from pospatch.engine import _probe
from pospatch.engine._seams import first_input
from pospatch.engine._sites import Sites
from pospatch.engine._undo import Undo

__all__ = ["tokens_before"]


def tokens_before(model: Any, sites: Sites, path: str, grid: tuple[int, ...], length: int) -> int:
    """Tokens that stand before the first patch where one attention runs over `length` of them.

    The last pixel of the image belongs to the last patch; which token it changes before the first layer says where the
    patches end. Where it changes several (windows that overlap), whatever is no patch is taken to stand before them.
    """
    patches = grid[0] * grid[1]
    extra = length - patches
    if extra == 0:
        return 0
    inputs = sites.probe(model)
    name, image = next(((n, v) for n, v in inputs.items() if v.dim() > 3 and v.is_floating_point()), ("", None))
    if image is None:
        return extra
    other = image.clone()
    tall, wide = (side // count for side, count in zip(image.shape[-2:], grid, strict=True))
    other[..., grid[0] * tall - 1, grid[1] * wide - 1] += 1.0
    before, after = (_entering(model, sites, path, {**inputs, name: value}) for value in (image, other))
    moved = (before != after).flatten(0, -3).any(dim=0).any(dim=-1).nonzero().flatten().tolist()
    last = moved[0] if len(moved) == 1 else length - 1
    return min(max(last - patches + 1, 0), extra)


def _entering(model: Any, sites: Sites, path: str, inputs: dict[str, Tensor]) -> Tensor:
    """The hidden states that one attention is given."""
    undo, seen = Undo(), []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(first_input(module, args, kwargs))

    undo.hook(sites.attention[path].register_forward_pre_hook(look, with_kwargs=True))
    try:
        with torch.no_grad(), _probe.quiet(model):
            _probe.forward(model, inputs)
    finally:
        undo.play()
    return seen[0].float()
