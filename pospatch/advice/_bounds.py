"""Bounds of a rotary base for a length, and ranges that published methods were shown to work in; pure arithmetic.

Source of the bounds: Rotary Positional Embeddings as Phase Modulation, arXiv 2602.10959.
"""

from __future__ import annotations

import math

__all__ = ["aliasing_base", "precision_base", "self_extend_group", "stable_base", "turns"]

_COHERENCE = 0.9  # of a component that should not turn, after all layers; our choice, the paper leaves it open


def turns(theta: float, rotated: int, length: int) -> float:
    """Turns of the slowest pair over a length.

    >>> round(turns(10000.0, 128, 4096), 3)
    0.075
    """
    return length * theta ** (-(rotated - 2) / rotated) / (2 * math.pi)


def aliasing_base(rotated: int, length: int) -> float:
    """The smallest base whose slowest pair does not come round once over the length.

    turns(base, rotated, length) = 1; the paper writes base > length / (2 * pi), the limit of many pairs.
    """
    return float((length / (2 * math.pi)) ** (rotated / (rotated - 2))) if rotated > 2 else math.inf


def stable_base(length: int, layers: int) -> float:
    """The smallest base for which the slowest pair keeps its coherence through all layers.

    base = length / arccos(coherence ** (1 / layers))
    """
    return length / math.acos(_COHERENCE ** (1 / layers))


def precision_base(bits: int = 23) -> float:
    """The largest base whose slowest pair still moves in a number of `bits` bits of mantissa: 1 / epsilon.

    >>> precision_base()
    8388608.0
    """
    return 2.0**bits


def self_extend_group(trained: int, length: int, window: int) -> int | None:
    """The smallest group for which window + (length - window) / group < 2 / 3 * trained, from 2 to 64, or None.

    Self-Extend's rule of thumb (arXiv 2401.01325): grouped distances stay well inside what was trained.
    """
    room = 2 / 3 * trained - window
    group = math.floor((length - window) / room) + 1 if room > 0 else 65
    return max(group, 2) if group <= 64 else None
