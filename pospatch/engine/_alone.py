"""Proofs for models whose inputs cannot simply be permuted: each attention by itself, each table by poison, images by patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from pospatch.engine import _probe
from pospatch.engine._plan import Plan
from pospatch.engine._seams import KEYWORD, exchanged, first_input, first_output
from pospatch.engine._sites import Sites
from pospatch.engine._undo import Undo
from pospatch.errors import SeamChanged

__all__ = ["open_buffers", "permuted_patches", "prove_alone", "prove_read"]


def open_buffers(sites: Sites) -> Undo:
    """Let every token see every token where a module keeps the causal triangle in a buffer; play it back afterwards."""
    undo = Undo()
    for module in sites.own.values():
        for name in sites.host.opened:
            if (buffer := module._buffers.get(name)) is not None:
                undo.set_buffer(module, name, torch.ones_like(buffer))
    return undo


def permuted_patches(model: Any, probe: dict[str, Tensor]) -> Any:
    """Outputs for an image and for the same image with its patches in another order, where a model cuts it into patches."""
    (name, pixels), *_ = probe.items()
    grid = _probe.grid_of(model.config)
    if name != "pixel_values" or grid is None or pixels.dim() != 4:
        return None
    rows, columns = grid
    height, width = pixels.shape[2] // rows, pixels.shape[3] // columns
    if (height * rows, width * columns) != tuple(pixels.shape[2:]):
        return None
    straight = _probe.forward(model, probe)
    hidden = straight.get("last_hidden_state")
    before = hidden.shape[1] - rows * columns if hidden is not None and hidden.dim() == 3 else -1
    if before < 0:
        return None
    order = torch.arange(rows * columns - 1, -1, -1, device=pixels.device)
    cut = pixels.unfold(2, height, height).unfold(3, width, width).flatten(2, 3)[:, :, order]
    cut = cut.unflatten(2, (rows, columns)).permute(0, 1, 2, 4, 3, 5).reshape(pixels.shape)
    every = torch.cat((torch.arange(before, device=pixels.device), order + before))
    return straight, _probe.forward(model, {name: cut}), every, ["last_hidden_state"]


def prove_alone(
    model: Any, plan: Plan, probe: dict[str, Tensor], tolerance: Callable[[Any, torch.dtype], float]
) -> None:
    """Each attention, called again with its tokens permuted, permutes its output; no cleared table is read any more."""
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    handles = []
    for path, module in plan.sites.attention.items():
        if KEYWORD in module._modules:
            handles.append(module.register_forward_pre_hook(_keep(calls, path), with_kwargs=True, prepend=True))
    try:
        _probe.forward(model, probe)
    finally:
        for handle in handles:
            handle.remove()
    for path, (args, kwargs) in calls.items():
        _prove_one(path, plan.sites.attention[path], args, kwargs, lambda dtype: tolerance(model, dtype))
    _prove_unread(model, plan, probe)


def _keep(calls: dict[str, Any], path: str) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[path] = (args, kwargs)

    return hook


def _prove_one(
    path: str,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tolerance: Callable[[torch.dtype], float],
) -> None:
    hidden = first_input(module, args, kwargs)
    axis = 1 if hidden.dim() > 2 else 0  # patches of many images come as one sequence without a batch
    order = torch.arange(hidden.shape[axis] - 1, -1, -1, device=hidden.device)
    turned = hidden.index_select(axis, order)
    straight = first_output(module(*args, **kwargs))
    args, kwargs = exchanged(args, kwargs, hidden, turned)
    moved = first_output(module(*args, **kwargs))
    gap = (straight.index_select(axis, order).float() - moved.float()).abs().max().item()
    size = straight.float().std().item() + 1e-12
    if not gap <= tolerance(straight.dtype) * max(size, 1e-3):
        raise SeamChanged(
            f"{path} ({type(module).__name__}) still knows positions after its known sites were cleared: permuted tokens change "
            f"its output by {gap:.2e} (its spread is {size:.2e}); the model is left unpatched"
        )


def _prove_unread(model: Any, plan: Plan, probe: dict[str, Tensor]) -> None:
    """Cleared tables filled with NaN leave the output as it is."""
    for table in plan.sites.tables if "embedding" not in plan.slots else ():
        holder = table.parent._modules[table.name] if not table.inner else table.module
        if _poisoned(model, probe, holder, table.tensor):
            raise SeamChanged(f"{type(model).__name__} still reads {table.path}; it is left unpatched")


def _poisoned(model: Any, probe: dict[str, Tensor], holder: Any, tensor: str) -> bool:
    """True where a tensor filled with NaN shows in the output."""
    held = holder._parameters if holder._parameters.get(tensor) is not None else holder._buffers
    kept = held[tensor]
    poison = torch.full_like(kept, float("nan"))
    held[tensor] = nn.Parameter(poison, requires_grad=False) if isinstance(kept, nn.Parameter) else poison
    try:
        outputs = _probe.forward(model, probe)
    finally:
        held[tensor] = kept
    return any(bool(value.isnan().any()) for value in outputs.values())


def prove_read(model: Any, plan: Plan, probe: dict[str, Tensor]) -> None:
    """New tables of sines and cosines are what the attention reads: filled with NaN they show."""
    for table in plan.sites.sincos:
        if not _poisoned(model, probe, table.module, table.tensor):
            raise SeamChanged(f"nothing reads {table.path}; {type(model).__name__} is left unpatched")
