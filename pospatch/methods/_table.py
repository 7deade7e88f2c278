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
    mixed = values[low] + t * (values[high] - values[low])
    if order == "cubic":
        curvature, rest = curvatures(values), 1 - t
        mixed = mixed + ((rest**3 - rest) * curvature[low] + (t**3 - t) * curvature[high]) / 6
    return mixed.to(table.dtype)


def curvatures(values: Tensor) -> Tensor:
    """Second derivatives at 0, 1, ... of the cubic spline through `values` whose third derivative is also continuous at the
    second and at the last but one point ("not-a-knot")."""
    count = values.shape[0]
    bends = torch.zeros_like(values)
    if count < 3:
        return bends
    bends[1:-1] = values[:-2] - 2 * values[1:-1] + values[2:]
    # m[i-1] + 4 m[i] + m[i+1] = 6 bend[i]; the end conditions make m[1] and m[-2] the bends themselves
    share = torch.zeros(count, dtype=values.dtype)
    for i in range(2, count - 2):
        share[i] = 1 / (4 - share[i - 1])
        bends[i] = (6 * bends[i] - bends[i - 1]) * share[i]
    for i in range(count - 3, 1, -1):
        bends[i] = bends[i] - share[i] * bends[i + 1]
    bends[0] = 2 * bends[1] - bends[min(2, count - 2)]
    bends[-1] = 2 * bends[-2] - bends[max(-3, 1 - count)]
    return bends
