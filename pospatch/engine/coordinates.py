"""Positions that the caller gives: any numbers, one or several a token, for what acts inside attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pospatch.engine._door import Given
from pospatch.engine._forward import here
from pospatch.engine._seams import KEYWORD
from pospatch.engine._state import State
from pospatch.errors import BadOption, UnsupportedHost
from pospatch.methods._base import Rotary

__all__ = ["given"]


@contextmanager
def given(model: Any, where: Tensor) -> Iterator[None]:
    """Let calls of a patched model inside the block read `where`, (batch or 1, length) or (batch or 1, length, axes)."""
    states = [module._modules[KEYWORD] for module in model.modules() if isinstance(module._modules.get(KEYWORD), State)]
    turning = [state for state in states if state.methods]
    count = _numbers(where)
    _check(model, turning, count)
    held = where.movedim(-1, 0) if where.dim() == 3 and count > 1 else where.reshape(where.shape[:2])
    shared = next((state.given for state in turning if state.given is not None), None) or Given()
    outer = shared.now.get(here())
    shared.now[here()] = held
    for state in turning:
        state.given = shared
    try:
        yield
    finally:
        if outer is None:
            shared.now.pop(here())
        else:
            shared.now[here()] = outer
        if not shared.now:
            for state in turning:
                state.given = None


def _numbers(where: Any) -> int:
    if not torch.is_tensor(where) or where.dim() not in (2, 3) or where.dtype == torch.bool or where.is_complex():
        got = tuple(where.shape) if torch.is_tensor(where) else type(where).__name__
        raise BadOption(f"coordinates are a tensor of numbers (batch, length) or (batch, length, axes), got {got}")
    return where.shape[2] if where.dim() == 3 else 1


def _check(model: Any, states: list[State], count: int) -> None:
    """Refuse what would not read them, or not all of them."""
    if not states:
        raise UnsupportedHost(
            f"nothing inside the attention of {type(model).__name__} reads positions of ours: apply 'rope_nd' or "
            "'cayley_string' first; tables and native rotary modules get theirs from the model itself"
        )
    for state in states:
        rotary = state.rotary
        other = [method.name for slot, method in state.methods.items() if slot != "rotary"]
        if rotary is None or other or not isinstance(rotary, Rotary) or rotary.dynamic or state.reindex is not None:
            raise UnsupportedHost(
                f"coordinates are read by rotations whose angles depend on nothing else, and "
                f"{', '.join(other) or 'another rule'} acts here too; 'rope_nd' and 'cayley_string' alone take them"
            )
        if rotary.numbers_taken() != count:
            wanted = rotary.numbers_taken() or "no"
            raise BadOption(f"{rotary.name} takes {wanted} numbers a token here, and the coordinates have {count}")
