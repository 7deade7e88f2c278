"""The kinds of methods: each says at which site it acts and what it returns; the engine knows kinds, never methods.

A method is a frozen dataclass of its options; its mathematics are functions of (positions, geometry, weights). Learned tensors
are declared by `weights` and owned by the engine, which hands them back by name.

The kinds are written in _absolute.py, _rotary.py, _score.py and _contextual.py, their common base in _method.py; all are taken
from here.
"""

from __future__ import annotations

from typing import ClassVar

from pospatch.methods._absolute import Embedding, Forward, Index
from pospatch.methods._contextual import Block, Contextual, SummedBias, SummedRotation
from pospatch.methods._method import Method, Weights
from pospatch.methods._rotary import Rotary, Scaling, apply_rotation, cos_sin_of
from pospatch.methods._score import Band, Bands, Bias, Fold, Norm, QueryScale

__all__ = [
    "Band",
    "Bands",
    "Bias",
    "Block",
    "Contextual",
    "Embedding",
    "Fold",
    "Forward",
    "Index",
    "Method",
    "Norm",
    "Nothing",
    "QueryScale",
    "Rotary",
    "Scaling",
    "SummedBias",
    "SummedRotation",
    "Weights",
    "apply_rotation",
    "cos_sin_of",
]


class Nothing(Method):
    """Clears every native position and puts nothing there."""

    slot: ClassVar[str] = "none"
    family: ClassVar[str] = "absolute"
