"""Functions of the distance between a query and a key, evaluated once for each distance rather than once for each pair."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["by_distance", "by_offset", "distances", "linear_start"]

Function = Callable[[Tensor], Tensor]


def distances(query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """m - n in tokens, int64 (batch, query, key), for positions (batch, query) and (batch, key)."""
    return query_positions[:, :, None] - key_positions[:, None, :]


def by_distance(query_positions: Tensor, key_positions: Tensor, function: Function) -> Tensor:
    """Values (batch, heads, query, key) of a function that maps distances m - n (count,) to (count, heads)."""
    if torch.compiler.is_compiling() or not (_counts_up(query_positions) and _counts_up(key_positions)):
        return by_offset(distances(query_positions, key_positions), function)
    first, last = int(query_positions[0, 0]), int(key_positions[0, -1])
    queries, keys = query_positions.shape[1], key_positions.shape[1]
    nearest = first - last
    values = (
        function(torch.arange(nearest + queries + keys - 2, nearest - 1, -1, device=query_positions.device))
        .t()
        .contiguous()
    )
    # each row of such a matrix is a window of one list, a step before the row above: copied as it lies, not looked up
    return torch.stack([values[:, i : i + keys] for i in range(queries - 1, -1, -1)], dim=1)[None]


def by_offset(offset: Tensor, function: Function) -> Tensor:
    """The same for any whole numbers (batch, query, key)."""
    if torch.compiler.is_compiling():  # the range is data, which a graph must not depend on
        return function(offset.flatten()).unflatten(0, offset.shape).permute(0, 3, 1, 2)
    low, high = (int(end) for end in offset.aminmax())
    values = function(torch.arange(low, high + 1, device=offset.device))
    return torch.nn.functional.embedding(offset - low, values).permute(0, 3, 1, 2).contiguous()


def _counts_up(positions: Tensor) -> bool:
    """True where every row is the same and its steps are 1."""
    wanted = positions[:1, :1] + torch.arange(positions.shape[1], device=positions.device)
    return bool((positions == wanted).all())


def linear_start(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Start of a linear layer (rows, columns): uniform within 1 / sqrt(columns), as torch.nn.Linear has it."""
    return (torch.rand(rows, columns, generator=generator, device="cpu") * 2 - 1) / columns**0.5
