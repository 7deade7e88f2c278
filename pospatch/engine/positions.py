"""The positions site: which position each token gets, changed where the host's table or rotary module reads it.

Never at the model's door: position ids that do not count up by one are read there as packed documents, and attention between
them is cut.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from functools import cache
from threading import get_ident
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from pospatch.engine._cache import self_attention
from pospatch.engine._sites import Table
from pospatch.engine._undo import Undo
from pospatch.errors import BadOption, UnsupportedHost
from pospatch.geometry import Geometry
from pospatch.methods._base import Forward, Index

__all__ = ["Readers", "Reindex"]


@dataclass
class Watch:
    """What is known of the forward that is running in one module, by thread, for those who read positions below it.

    Readers outside checkpointed blocks are called once a forward, so nothing here must outlive it.
    """

    method: Index
    now: dict[int, Forward] = field(default_factory=dict)

    def begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: notes the call's rows and pads, and draws a seed from torch's own generator in training."""
        drawing = module.training and self.method.training_only
        if not (drawing or self.method.by_row):
            return
        call = _arguments(module, args, kwargs)
        cache = self_attention(call.get("past_key_values"))
        if drawing and cache is not None and cache.get_seq_length() > 0:
            raise UnsupportedHost(
                f"{self.method.name} draws new positions for each forward in training mode, and this one goes on from a "
                "cache; call model.eval() to generate"
            )
        tokens = call.get("input_ids")
        inputs = tokens if tokens is not None else call.get("inputs_embeds")
        if inputs is None:
            return
        mask = call.get("attention_mask")
        flat = torch.is_tensor(mask) and mask.dim() == 2
        self.now[get_ident()] = Forward(
            seed=int(torch.randint(2**62, (), device="cpu")) if drawing else None,
            rows=inputs.shape[0],
            real=mask[:, -inputs.shape[1] :].bool() if flat else None,  # type: ignore[index]
        )

    def ends(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook: forgets."""
        self.now.pop(get_ident(), None)

    def forward(self, training: bool) -> Forward:
        """What is known of this thread's forward."""
        drawing = training and self.method.training_only
        if not (drawing or self.method.by_row):
            return _NOTHING
        found = self.now.get(get_ident())
        if found is None or (drawing and found.seed is None):
            raise UnsupportedHost(
                f"{self.method.name} was asked for positions outside a forward of the model, as happens where gradient "
                "checkpointing repeats a block that makes its own positions; train this model without checkpointing"
            )
        return found


_NOTHING = Forward()


@dataclass
class Reindex:
    """One Index method at one place that reads positions."""

    method: Index
    geometry: Geometry
    watch: Watch
    offset: int = 0
    reached: bool = False

    def __call__(self, positions: Tensor, training: bool) -> Tensor:
        """New positions for true ones."""
        self.reached = True
        if positions.dim() != 2:
            raise UnsupportedHost(
                f"{self.method.name} changes positions of shape (batch, length); this model reads {tuple(positions.shape)}"
            )
        forward = self.watch.forward(training)
        if forward is not _NOTHING and positions.shape[0] == 1:
            positions = positions.expand(forward.rows, -1)
        return self.method.positions(positions, self.geometry, forward)

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
        furthest = method.furthest(geometry)
        if furthest is not None and furthest > table.rows:
            raise BadOption(
                f"{method.name} reaches position {furthest - 1} and the table at {table.path} has {table.rows} rows; "
                f"give it more: apply(model, [('learned', {{'length': {furthest}}}), ({method.name!r}, {{...}})])"
            )
        reindex = Reindex(method, geometry, self._watch(table.path), table.offset)
        shadow = _new(type(table.module))
        object.__setattr__(
            shadow, "__dict__", vars(table.module)
        )  # one object under two classes: nothing to keep in step
        self.undo.set_attribute(table.module, "pospatch_index", reindex)
        self.undo.set_module(table.parent, table.name, shadow)
        return reindex

    def at_rotary(self, path: str, geometry: Geometry) -> Reindex:
        """Let a rotary module read other positions."""
        reindex = Reindex(self.method, geometry, self._watch(path))
        module = self.model.get_submodule(path)
        self.undo.hook(module.register_forward_pre_hook(reindex.rotary, with_kwargs=True))
        return reindex

    def _watch(self, path: str) -> Watch:
        """One watch on the innermost module around a reader that is called with token ids and their mask."""
        holder = path.rpartition(".")[0]
        while holder and not {"input_ids", "attention_mask"} <= set(_parameters(self.model.get_submodule(holder))):
            holder = holder.rpartition(".")[0]
        if holder not in self.watches:
            watch = self.watches[holder] = Watch(self.method)
            module = self.model.get_submodule(holder)
            self.undo.hook(module.register_forward_pre_hook(watch.begins, with_kwargs=True))
            self.undo.hook(module.register_forward_hook(watch.ends, always_call=True))
        return self.watches[holder]


def _parameters(module: nn.Module) -> list[str]:
    return list(inspect.signature(inspect.unwrap(type(module).forward)).parameters)[1:]


def _arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments by name."""
    return {**dict(zip(_parameters(module), args, strict=False)), **kwargs}
