"""Longer tables of positions from a trained one."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["grid", "interpolate", "tile"]


def interpolate(table: Tensor, rows: int, order: str) -> Tensor:
    """Sample the table at k * (old - 1) / (rows - 1): both ends stay exact, and the same number of rows is the identity."""
    old = table.shape[0]
    if rows == old:
        return table.clone()
    where = torch.arange(rows, dtype=torch.float64) * (old - 1) / max(rows - 1, 1)
    return _sample(table, where, order)


def grid(table: Tensor, factor: int, rows: int) -> Tensor:
    """Old row p at new row p * factor, linear in between, the last row repeated to the end."""
    where = (torch.arange(rows, dtype=torch.float64) / factor).clamp(max=table.shape[0] - 1)
    return _sample(table, where, "linear")


def tile(table: Tensor, rows: int) -> Tensor:
    """Row n is the old row n mod old: the first `old` rows are the trained ones, exactly."""
    return table[torch.arange(rows, device=table.device) % table.shape[0]].clone()


def _sample(table: Tensor, where: Tensor, order: str) -> Tensor:
    values = table.double()
    low = where.floor().clamp(max=table.shape[0] - 2).long().clamp(min=0)
    t = (where - low)[:, None].to(values.device)
    low = low.to(values.device)
    high = (low + 1).clamp(max=table.shape[0] - 1)
    a, b = values[low], values[high]
    mixed = a + t * (b - a)
    if order == "cubic":
        before, after = values[(low - 1).clamp(min=0)], values[(high + 1).clamp(max=table.shape[0] - 1)]
        slope_a, slope_b = (b - before) / 2, (after - a) / 2
        mixed = (
            (2 * t**3 - 3 * t**2 + 1) * a
            + (t**3 - 2 * t**2 + t) * slope_a
            + (3 * t**2 - 2 * t**3) * b
            + (t**3 - t**2) * slope_b
        )
    return mixed.to(table.dtype)
