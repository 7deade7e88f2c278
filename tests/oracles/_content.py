"""What the oracles of content-dependent methods share: scores, and sums over the real tokens between a key and its query."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pospatch.geometry import Geometry


def scores(geometry: Geometry, q: Tensor, k: Tensor) -> Tensor:
    """Scaled q.k of one sequence, (heads, length, length), float64."""
    group = q.shape[0] // k.shape[0]
    return torch.stack([geometry.scaling * q[h].double() @ k[h // group].double().T for h in range(q.shape[0])])


def causal(rows: list[list[list[Tensor | float]]]) -> Tensor:
    """Nested lists [head][query][key up to it] as (heads, length, length), minus infinity beyond."""
    length = len(rows[0])
    full = [
        [
            torch.stack([torch.as_tensor(x, dtype=torch.double) for x in row + [-math.inf] * (length - len(row))])
            for row in head
        ]
        for head in rows
    ]
    return torch.stack([torch.stack(head) for head in full])


def spans(numbers: Tensor) -> Tensor:
    """sum over t = n + 1 .. m of numbers[h, t], (heads, length, length) with minus infinity where n > m."""
    heads, length = numbers.shape
    return causal(
        [[[numbers[h, n + 1 : m + 1].sum() for n in range(m + 1)] for m in range(length)] for h in range(heads)]
    )
