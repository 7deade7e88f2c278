"""The proof that a patch acts: every intended module is reached, and nothing positional of the host is left."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from pospatch.engine import _probe, embedding, rotation
from pospatch.engine._plan import Plan
from pospatch.engine._seams import KEYWORD
from pospatch.engine.positions import Reindex
from pospatch.errors import SeamChanged

__all__ = ["prove"]

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.float16: 0.05, torch.bfloat16: 0.3}


def prove(model: Any, plan: Plan, readers: dict[str, Reindex]) -> None:
    """Every intended module is reached, and with our own methods silent nothing positional is left of the host."""
    states: dict[str, Any] = {
        path: m._modules[KEYWORD] for path, m in plan.sites.attention.items() if KEYWORD in m._modules
    }
    added = [module for module in model.modules() if isinstance(module, embedding.AddedTable)]
    ids = _probe.tokens(model)
    with _probe.quiet(model):
        if plan.by_module and not states and not readers:
            return _prove_respun(model, ids)
        _probe.forward(model, ids)
        if missed := [path for path, reindex in readers.items() if not reindex.reached]:
            raise SeamChanged(
                f"{missed[0]} was not asked for positions by {type(model).__name__}; it is left unpatched"
            )
        if missed := [path for path, state in states.items() if not state.reached]:
            raise SeamChanged(
                f"{missed[0]} was not reached by its attention function; {type(model).__name__} is left unpatched"
            )
        if (
            plan.clearing
            and not plan.partial
            and not plan.by_module
            and (not plan.sites.tables or "embedding" not in plan.slots)
        ):
            _prove_cleared(model, ids, [*states.values(), *added])


class _Reached(Exception):
    """Ends a proof forward early: what was to be shown has been seen."""


def _prove_respun(model: Any, ids: Tensor) -> None:
    """The new rotary module is what the model calls; the forward ends there."""

    def reached(module: nn.Module, args: Any, output: Any) -> None:
        raise _Reached

    respun = [module for module in model.modules() if isinstance(module, rotation.FrequencyModule)]
    for module in respun:
        handle = module.register_forward_hook(reached)
        try:
            _probe.forward(model, ids)
        except _Reached:
            continue
        finally:
            handle.remove()
        raise SeamChanged(
            f"{type(model).__name__} did not call its rotary module {type(module.host).__name__}; it is left unpatched"
        )


def _prove_cleared(model: Any, ids: Tensor, ours: list[Any]) -> None:
    """With ours silent and every token seeing every token, permuting the tokens must permute the output and do nothing else."""
    for item in ours:
        item.proof = True
    try:
        order = torch.arange(ids.shape[1] - 1, -1, -1, device=ids.device)
        straight, turned = _probe.forward(model, ids), _probe.forward(model, ids[:, order])
    finally:
        for item in ours:
            item.proof = False
    for name, value in straight.items():
        gap = (value[:, order].float() - turned[name].float()).abs().max().item()
        size = value.float().std().item() + 1e-12
        if not gap <= _TOLERANCE.get(value.dtype, 1e-3) * max(size, 1e-3):
            raise SeamChanged(
                f"{type(model).__name__} still knows positions after its known sites were cleared: permuted tokens change "
                f"{name} by {gap:.2e} (its spread is {size:.2e}); it is left unpatched"
            )
