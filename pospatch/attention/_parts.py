"""A float32 number as several numbers of a narrower type whose sum it is."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["count", "split"]

_DIGITS = {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def count(dtype: torch.dtype) -> int:
    """How many numbers of this type hold the 24 binary digits of a float32.

    >>> [count(kind) for kind in (torch.float64, torch.float32, torch.float16, torch.bfloat16)]
    [1, 1, 3, 3]
    """
    return -(-24 // _DIGITS.get(dtype, 24))


def split(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x (...) as (..., count) of `dtype`, coarse part first; the gradient of their sum is that of x."""
    found, rest = [], x
    for _ in range(count(dtype)):
        part = rest.to(dtype)
        found.append(part)
        rest = rest - part.to(x.dtype)
    return torch.stack(found, dim=-1)
