"""Positions that the caller gives: any numbers, one or several a token, for what acts inside attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pospatch.engine._calls import here
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
    if torch.is_grad_enabled() and model.training and _checkpoints(model):
        raise UnsupportedHost(
            "coordinates hold in this block and thread, and gradient checkpointing repeats layers in backward, which may run "
            "elsewhere: their gradients would be those of other coordinates; call model.gradient_checkpointing_disable()"
        )
    held = where.movedim(-1, 0) if where.dim() == 3 and count > 1 else where.reshape(where.shape[:2])
    outer = [state.given.now.get(here()) for state in turning]
    for state in turning:
        state.given.now[here()] = held
    try:
        yield
    finally:
        for state, before in zip(turning, outer, strict=True):
            if before is None:
                state.given.now.pop(here())
            else:
                state.given.now[here()] = before


def _checkpoints(model: Any) -> bool:
    name = "activation" if hasattr(type(model), "is_activation_checkpointing") else "gradient"  # the older name
    return bool(getattr(model, f"is_{name}_checkpointing", False))


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
                f"coordinates are read by a rotation whose angles depend on nothing else, standing alone, and "
                f"{', '.join(other) or 'another rule'} acts here too; remove it, or apply 'rope_nd' or 'cayley_string' alone"
            )
        if rotary.numbers_taken() != count:
            wanted = rotary.numbers_taken() or "no"
            raise BadOption(f"{rotary.name} takes {wanted} numbers a token here, and the coordinates have {count}")
