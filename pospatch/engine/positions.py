"""The positions site: which position each token gets, changed where the host's table or rotary module reads it.

Never at the model's door: position ids that do not count up by one are read there as packed documents, and attention between
them is cut.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from pospatch.engine._calls import parameters
from pospatch.engine._forward import NOTHING, Watch
from pospatch.engine._state import State
from pospatch.engine._tables import Table
from pospatch.engine._undo import Undo
from pospatch.engine.embedding import AddedTable
from pospatch.errors import BadOption, UnsupportedHost
from pospatch.geometry import Geometry
from pospatch.methods._base import Forward, Index

__all__ = ["Readers", "Reindex"]


@dataclass
class Reindex:
    """One Index method at one place that reads positions.

    absolute: True where each position has a vector, False where differences of positions count.
    """

    method: Index
    geometry: Geometry
    watch: Watch
    absolute: bool
    offset: int = 0
    reached: bool = False

    def __call__(self, positions: Tensor, training: bool, carried: Forward | None = None) -> Tensor:
        """New positions for true ones; `carried` are the facts of the forward that came with this call, if any did."""
        self.reached = True
        if positions.dim() != 2:
            raise UnsupportedHost(
                f"{self.method.name} changes positions of shape (batch, length); this model reads {tuple(positions.shape)}"
            )
        forward = self.watch.forward(training, carried)
        if forward is not NOTHING and positions.shape[0] == 1:
            positions = positions.expand(forward.rows, -1)
        choose = self.method.positions if self.absolute else self.method.relative
        return choose(positions, self.geometry, forward.to(positions.device))

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


@dataclass
class Readers:
    """The places where one Index method acts in one model; those below the same module see the same forward."""

    model: nn.Module
    method: Index
    undo: Undo
    watches: dict[str, Watch] = field(default_factory=dict)

    def at_table(self, table: Table, geometry: Geometry) -> Reindex:
        """Let a table read other positions; it keeps its parameters, its name and its own way of counting."""
        method = self.method
        if not isinstance(table.module, nn.Embedding):
            raise UnsupportedHost(
                f"{method.name} changes which row a table gives, and {table.path} ({type(table.module).__name__}) is no "
                "nn.Embedding; there is no row to choose"
            )
        self._has_rows(table.path, table.rows, geometry)
        reindex = self._reindex(table.path, geometry, absolute=True, offset=table.offset)
        shadow = _new(type(table.module))
        # one object under two classes: nothing to keep in step
        object.__setattr__(shadow, "__dict__", vars(table.module))
        self.undo.set_attribute(table.module, "pospatch_index", reindex)
        self.undo.set_module(table.parent, table.name, shadow)
        return reindex

    def at_rotary(self, path: str, geometry: Geometry) -> Reindex:
        """Let a rotary module read other positions."""
        reindex = self._reindex(path, geometry, absolute=False)
        module = self.model.get_submodule(path)
        self.undo.hook(module.register_forward_pre_hook(reindex.rotary, with_kwargs=True))
        return reindex

    def at_added(self, path: str, table: AddedTable, geometry: Geometry) -> Reindex:
        """Let a table of ours, added before the first block, read other positions."""
        self._has_rows(path, table.weight.shape[0], geometry)
        reindex = self._reindex(path, geometry, absolute=True)
        self.undo.set_attribute(table, "reindex", reindex)
        return reindex

    def at_attention(self, path: str, state: State, geometry: Geometry) -> Reindex:
        """Let what acts inside an attention module read other positions."""
        state.reindex = self._reindex(path, geometry, absolute=False)
        state.reindex.watch.carried = True
        return state.reindex

    def _reindex(self, path: str, geometry: Geometry, *, absolute: bool, offset: int = 0) -> Reindex:
        return Reindex(self.method, geometry.with_(table=None), self.watch(path), absolute, offset)

    def _has_rows(self, path: str, rows: int, geometry: Geometry) -> None:
        furthest = self.method.furthest(geometry)
        if furthest is not None and furthest > rows:
            raise BadOption(
                f"{self.method.name} reaches position {furthest - 1} and the table at {path} has {rows} rows; "
                f"give it more: apply(model, [('learned', {{'length': {furthest}}}), ({self.method.name!r}, {{...}})])"
            )

    def watch(self, path: str) -> Watch:
        """One watch on the innermost module around a reader that is called with token ids and their mask."""
        holder = path.rpartition(".")[0]
        while holder and not {"input_ids", "attention_mask"} <= set(parameters(self.model.get_submodule(holder))):
            holder = holder.rpartition(".")[0]
        if holder not in self.watches:
            watch = self.watches[holder] = Watch(self.method)
            module = self.model.get_submodule(holder)
            self.undo.hook(module.register_forward_pre_hook(watch.begins, with_kwargs=True))
            self.undo.hook(module.register_forward_hook(watch.ends, always_call=True))
        return self.watches[holder]
