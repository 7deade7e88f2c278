"""Absolute tables of a host in each of the forms they take: a module with a weight, a parameter or a buffer of its owner."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from pospatch.hosts._base import AUTO, Host

__all__ = ["Table", "ends", "silent_class", "tables_of"]


@dataclass
class Table:
    """One absolute table of the host: `rows` trained positions after `offset` rows of its own.

    Args:
        module: the module that is the table, or that owns it as a parameter or buffer.
        tensor: name of the tensor in `module`.
        inner: True where the table is a tensor that its owner reads itself, so that there is no module to exchange.
        hollow: True where one row of zeros stands for the table when it is cleared.
    """

    path: str
    parent: nn.Module
    name: str
    module: nn.Module
    offset: int
    tensor: str = "weight"
    inner: bool = False
    grid: tuple[int, int] | None = field(default=None)
    hollow: bool = False

    @property
    def weight(self) -> Any:
        held = self.module._parameters.get(self.tensor)
        return held if held is not None else self.module._buffers[self.tensor]

    @property
    def trained(self) -> bool:
        """True where the rows are a parameter, which can be exchanged for other rows."""
        return self.module._parameters.get(self.tensor) is not None

    @property
    def rows(self) -> int:
        return self.weight.numel() // self.weight.shape[-1] - self.offset  # its shape is there on the meta device too

    @property
    def wrapped(self) -> bool:
        """True where peft has put a layer of its own around the module since."""
        held = None if self.inner else self.parent._modules.get(self.name)
        return type(held).__module__.partition(".")[0] == "peft"

    def matrix(self) -> Tensor:
        """All rows, (offset + rows, width), whatever the tensor's leading dimensions."""
        weight = self.weight.detach()
        if weight.is_meta:  # offloaded by accelerate, whose hook knows where it is
            weight = self.module._hf_hook.weights_map[self.tensor]  # type: ignore[union-attr,operator,index]
        return weight.reshape(-1, weight.shape[-1])


def tables_of(model: nn.Module, host: Host, names: tuple[str, ...]) -> list[Table]:
    """The tables whose paths end with one of these names, in the order of the modules."""
    found: list[Table] = []
    for path, module in model.named_modules():
        if ends(path, names) and (tensor := _own_tensor(module)) is not None:
            parent_path, _, name = path.rpartition(".")
            parent = model.get_submodule(parent_path)
            found.append(Table(path, parent, name, module, _offset(module, host), tensor))
            continue
        for name, value in [*module._parameters.items(), *module._buffers.items()]:
            inner_path = f"{path}.{name}" if path else name
            if value is None or not ends(inner_path, names) or not _is_table(value):
                continue
            grid = _grid(module, value)
            offset = host.offset if isinstance(host.offset, int) else 0
            found.append(
                Table(inner_path, module, name, module, offset, name, inner=True, grid=grid, hollow=host.added)
            )
    return found


def ends(path: str, names: tuple[str, ...]) -> bool:
    """True where a path ends with one of these names, whole steps of it."""
    return any(
        path == name or path.endswith("." + name) or ("*" in name and fnmatch(path, f"*{name}")) for name in names
    )


def _own_tensor(module: nn.Module) -> str | None:
    """The tensor of a module that is a table itself: `weight`, or the `weights` of a sinusoidal one."""
    if module._modules:
        return None
    for name in ("weight", "weights"):
        parameter = module._parameters.get(name)
        value = parameter if parameter is not None else module._buffers.get(name)
        if value is not None and value.dim() == 2:
            return name
    return None


def _is_table(value: Tensor) -> bool:
    return value.dtype.is_floating_point and 2 <= value.dim() <= 4 and value.numel() > value.shape[-1]


def _grid(module: nn.Module, value: Tensor) -> tuple[int, int] | None:
    return (value.shape[1], value.shape[2]) if value.dim() == 4 else None


def _offset(module: Any, host: Host) -> int:
    if host.offset == "padding_idx" or (host.offset == AUTO and getattr(module, "padding_idx", None) is not None):
        return int(module.padding_idx) + 1
    return int(getattr(module, "offset", 0) or 0) if host.offset == AUTO else int(host.offset)


def silent_class(host_class: type[nn.Module], name: str, hollow: bool = False) -> type:
    """The owner's class, in which the tensor `name` reads as zeros, of one row where `hollow`; the real one stays among its
    parameters."""
    return _silent_class(host_class, name, hollow)  # type: ignore[arg-type]  # classes hash by identity, whatever their objects do


@cache
def _silent_class(host_class: Any, name: str, hollow: bool) -> type:

    def zeros(self: Any) -> Tensor:
        held = self._parameters.get(name)
        held = held if held is not None else self._buffers[name]
        return held.new_zeros(1, 1, held.shape[-1]) if hollow else torch.zeros_like(held)

    def keep(self: Any, key: str, value: Any) -> None:
        if key != name:  # a host that moves its table as it reads it would lose the rows for the zeros
            host_class.__setattr__(self, key, value)

    return type(
        host_class.__name__,
        (host_class,),
        {
            name: property(zeros),
            "__setattr__": keep,
            "__module__": host_class.__module__,
            "__qualname__": host_class.__qualname__,
            "__reduce_ex__": lambda self, protocol: (_silent, (host_class, name, hollow), vars(self)),
        },
    )


def _silent(host_class: type, name: str, hollow: bool) -> Any:
    made = silent_class(host_class, name, hollow)
    return object.__new__(made)
