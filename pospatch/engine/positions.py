"""The positions site: which position each token gets, changed where the host's table or rotary module reads it.

Never at the model's door: position ids that do not count up by one are read there as packed documents, and attention between
them is cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from pospatch.engine._tables import Table
from pospatch.engine._undo import Undo
from pospatch.errors import BadOption, UnsupportedHost
from pospatch.geometry import Geometry
from pospatch.methods._base import Index

__all__ = ["Reindex", "at_rotary", "at_table"]


@dataclass
class Reindex:
    """One Index method at one place that reads positions.

    A method that draws at random draws once for each forward of `parent`, the module that calls the reader: all readers
    and all layer types of that forward then agree.
    """

    method: Index
    geometry: Geometry
    offset: int = 0
    seed: int = 0
    reached: bool = False

    def renew(self, parent: nn.Module, args: Any) -> None:
        """Forward pre-hook of the parent: a new draw, from torch's own generator."""
        if parent.training and self.method.training_only:
            self.seed = int(torch.randint(2**62, ()))

    def __call__(self, positions: Tensor, training: bool) -> Tensor:
        """New positions for true ones."""
        self.reached = True
        if not (training and self.method.training_only):
            return self.method.positions(positions, self.geometry, training=training)
        devices = [positions.device] if positions.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            return self.method.positions(positions, self.geometry, training=True)

    def rotary(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook of a rotary module: its second argument, or `position_ids`, holds the positions."""
        if len(args) > 1:
            return (args[0], self(args[1], module.training), *args[2:]), kwargs
        return args, {**kwargs, "position_ids": self(kwargs["position_ids"], module.training)}

    def rows(self, ids: Tensor, training: bool) -> Tensor:
        """Row numbers of a table, for the host's row numbers; rows before the offset are the host's own."""
        true = ids - self.offset
        moved = self(true.clamp(min=0), training)
        if moved.is_floating_point():
            raise UnsupportedHost(f"{self.method.name} gives fractions of a position, and a table has whole rows")
        return torch.where(true < 0, ids, moved + self.offset)


class _Reading(nn.Embedding):
    """Where the host's table ends up looking its rows up, whatever its own class does before."""

    host_class: type

    def forward(self, input: Tensor) -> Tensor:
        reindex: Reindex = vars(self)["pospatch_index"]
        return super().forward(reindex.rows(input, self.training))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _new, (self.host_class,), vars(self)


@cache
def _reading(host_class: type) -> type:
    """The host's class of table with `_Reading` between it and nn.Embedding."""
    bases = (_Reading,) if host_class is nn.Embedding else (host_class, _Reading)
    return type(host_class.__name__, bases, {"host_class": host_class, "__module__": host_class.__module__})


def _new(host_class: type) -> Any:
    made = _reading(host_class)
    return object.__new__(made)


def at_table(table: Table, method: Index, geometry: Geometry, undo: Undo) -> Reindex:
    """Let a table read other positions; it keeps its parameters, its name and its own way of counting."""
    if not isinstance(table.module, nn.Embedding):
        raise UnsupportedHost(
            f"{method.name} changes which row a table gives, and {table.path} ({type(table.module).__name__}) is no "
            "nn.Embedding; there is no row to choose"
        )
    furthest = method.furthest(geometry)
    if furthest is not None and furthest > table.rows:
        raise BadOption(
            f"{method.name} reaches position {furthest - 1} and the table at {table.path} has {table.rows} rows; "
            f"give it more: apply(model, [('learned', {{'length': {furthest}}}), ({method.name!r}, {{...}})])"
        )
    reindex = Reindex(method, geometry, table.offset)
    shadow = _new(type(table.module))
    object.__setattr__(shadow, "__dict__", vars(table.module))  # one object under two classes: nothing to keep in step
    undo.set_attribute(table.module, "pospatch_index", reindex)
    undo.set_module(table.parent, table.name, shadow)
    undo.hook(table.parent.register_forward_pre_hook(reindex.renew))
    return reindex


def at_rotary(model: nn.Module, path: str, method: Index, geometry: Geometry, undo: Undo) -> Reindex:
    """Let a rotary module read other positions."""
    reindex = Reindex(method, geometry)
    parent, _, name = path.rpartition(".")
    holder = model.get_submodule(parent)
    undo.hook(holder.register_forward_pre_hook(reindex.renew))
    undo.hook(holder.get_submodule(name).register_forward_pre_hook(reindex.rotary, with_kwargs=True))
    return reindex
