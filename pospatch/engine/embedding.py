"""The embedding site: the host's table emptied, resized, or a table of ours added before the first layer."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from torch import Tensor

from pospatch.engine._cache import self_attention
from pospatch.engine._forward import FORWARD
from pospatch.engine._seams import counted, given_to, positions_of
from pospatch.engine._tables import Table, silent_class
from pospatch.engine._undo import Undo
from pospatch.errors import BadOption, UnsupportedHost
from pospatch.geometry import Geometry
from pospatch.methods._base import Embedding

if TYPE_CHECKING:
    from pospatch.engine.positions import Reindex

__all__ = [
    "AddedTable",
    "EmptyTable",
    "add",
    "add_positions",
    "clear",
    "exchange",
    "hush",
    "regrow",
    "replace",
    "weigh",
]

NAME = "pospatch_table"
RESIZING = "interpolate_pos_encoding"
UNBOUNDED = 2**17  # rows of index buffers where no table bounds the length any more; 1 MB each


class EmptyTable(nn.Module):
    """Stands where the host's table stood: owns the same parameter under the same name and adds nothing, at any length."""

    def __init__(self, original: nn.Module, tensor: str = "weight") -> None:
        super().__init__()
        self.tensor = tensor
        if (parameter := original._parameters.get(tensor)) is not None:
            self.register_parameter(tensor, parameter)
        else:
            persistent = tensor not in original._non_persistent_buffers_set
            self.register_buffer(tensor, original._buffers[tensor], persistent=persistent)
        for name in ("padding_idx", "num_embeddings"):  # hosts ask them of the table that they know
            vars(self)[name] = getattr(original, name, None)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        weight = getattr(self, self.tensor)
        asked = next((value for value in (*args, *kwargs.values()) if torch.is_tensor(value)), weight)
        return weight.new_zeros(1, 1, weight.shape[-1], device=asked.device)  # an offloaded weight is on no device

    def moved_like(self, original: nn.Module) -> None:
        """Hand the parameter back, in case a wrapper put another object in its place."""
        if self.tensor in self._parameters:
            original._parameters[self.tensor] = self._parameters[self.tensor]
        else:
            original._buffers[self.tensor] = self._buffers[self.tensor]


class Weights(nn.Module):
    """Learned tensors of a table method, beside the host's own table; its rows pass through them on their way out."""

    def __init__(self, method: Embedding, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.method = method
        for name, value in tensors.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, rows: Tensor) -> Tensor:
        owned = {name: value for name, value in self._parameters.items() if value is not None and name != "weight"}
        return self.method.vectors(rows, owned) if owned else rows


class AddedTable(Weights):
    """A table of ours on a host that has none, added to the hidden states that enter the first layer."""

    weight: Tensor

    def __init__(self, method: Embedding, rows: Tensor, tensors: dict[str, Tensor]) -> None:
        super().__init__(method, tensors)
        if method.fixed:
            self.register_buffer("weight", rows)
        else:
            self.register_parameter("weight", nn.Parameter(rows))
        self.proof = False
        self.reindex: Reindex | None = None

    def forward(self, positions: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and int(positions.max()) >= self.weight.shape[0]:
            raise BadOption(
                f"position {int(positions.max())} is beyond the table of {self.weight.shape[0]} rows; "
                "apply the method with a larger length="
            )
        return super().forward(torch.nn.functional.embedding(positions, self.weight))


class IndexedTable(nn.Module):
    """A table of ours in the place of one that its host keeps in a buffer, out of reach of gradients.

    The host's module still says which row each token gets: its own rows are exchanged for their numbers, and ours are looked up.
    """

    def __init__(self, original: nn.Module, tensor: str, table: AddedTable) -> None:
        super().__init__()
        vars(self)["padding_idx"] = getattr(original, "padding_idx", None)
        self.add_module(NAME, table)
        counter = copy.copy(original)
        counter._buffers = {
            **original._buffers,
            tensor: torch.arange(UNBOUNDED, device=table.weight.device).float()[:, None],
        }
        vars(self)["counter"] = counter  # no submodule: nothing of it is saved

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        counter = vars(self)["counter"]
        return self._modules[NAME](counter(*args, **kwargs)[..., 0].long())  # type: ignore[misc]

    def _apply(self, fn: Any, recurse: bool = True) -> IndexedTable:
        super()._apply(fn, recurse)
        table: Any = self._modules[NAME]
        buffers = vars(self)["counter"]._buffers
        buffers.update({n: value if value is None else value.to(table.weight.device) for n, value in buffers.items()})
        return self


def clear(table: Table, undo: Undo) -> None:
    """Empty one table; its parameter stays in the state dict, frozen, so that DDP finds no unused one."""
    if table.trained:
        undo.freeze(table.weight)
    owner = table.module if table.inner else table.parent
    if hasattr(owner, RESIZING):  # hosts of images resize the rows themselves there, past the module that holds them
        undo.set_attribute(owner, RESIZING, _no_rows)
    if table.inner:
        undo.set_class(table.module, silent_class(type(table.module), table.tensor, table.hollow))
    else:
        undo.set_module(table.parent, table.name, EmptyTable(table.module, table.tensor))


def _no_rows(embeddings: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return embeddings.new_zeros(1, 1, embeddings.shape[-1])


def replace(
    table: Table, method: Embedding, geometry: Geometry, undo: Undo, kept: nn.Parameter | None = None
) -> nn.Parameter:
    """Put new rows behind the host's own offset rows; the table keeps its class and its way of indexing."""
    old, rows = table.weight, method.table(geometry)
    if kept is None:
        if geometry.grid is not None and rows.shape[0] != table.rows:
            raise BadOption(
                f"{method.name} makes a table of {rows.shape[0]} rows and {table.path} has one for each of the "
                f"{table.rows} tokens of an image; give the model images of another size instead"
            )
        weight = torch.cat((table.matrix()[: table.offset], rows.to(device=old.device, dtype=old.dtype)))
        kept = nn.Parameter(_shaped(weight, table), requires_grad=old.requires_grad and not method.fixed)
    undo.set_parameter(table.module, table.tensor, kept)
    if table.inner:
        return kept
    undo.set_attribute(table.module, "num_embeddings", kept.shape[0])
    return kept


def exchange(table: Table, method: Embedding, geometry: Geometry, undo: Undo, kept: Any = None) -> Any:
    """Put rows of ours, which can be trained, in the place of a table that stands in a buffer; the host still counts."""
    if kept is None:
        old = table.matrix()
        dtype = old.dtype if old.dtype.is_floating_point else torch.float32
        rows = torch.cat((old[: table.offset], method.table(geometry).to(device=old.device, dtype=dtype)))
        if table.inner:
            _refuse_weights(table, method, geometry)
            kept = nn.Parameter(rows, requires_grad=not method.fixed)
        else:
            kept = AddedTable(method, rows, _like(rows, method.weights(geometry)))
    if table.inner:
        undo.swap_buffer(table.module, table.tensor, kept)
    else:
        undo.set_module(table.parent, table.name, IndexedTable(table.module, table.tensor, kept))
    return kept


def _refuse_weights(table: Table, method: Embedding, geometry: Geometry) -> None:
    if method.weights(geometry):
        raise UnsupportedHost(
            f"{method.name} sends the rows of its table through learned tensors, and {table.path} is read by its owner itself; "
            "there is nothing between the two"
        )


def hush(modules: Iterable[nn.Module], undo: Undo) -> None:
    """Positions that a convolution makes from the hidden states: nothing of them is added any more."""
    for module in modules:
        for parameter in module.parameters():
            undo.freeze(parameter)
        undo.hook(module.register_forward_hook(_nothing))


def _nothing(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return torch.zeros_like(output)


def _shaped(weight: Tensor, table: Table) -> Tensor:
    """Rows in the dimensions of the table that they replace; one that an owner reads itself keeps its number of rows."""
    if not table.inner:
        return weight
    if weight.shape != table.matrix().shape:
        raise BadOption(
            f"{table.path} has {table.rows} rows, one for each patch or frame that the model takes; "
            f"{weight.shape[0] - table.offset} would not be read: give the model inputs of another size instead"
        )
    return weight.reshape(table.weight.shape)


def regrow(parent: nn.Module, names: tuple[str, ...], rows: int, undo: Undo) -> None:
    """Index buffers that bound the input's length, made `rows` long."""
    for name in names:
        buffer = parent._buffers.get(name)
        if buffer is None or buffer.shape[-1] == rows:
            continue
        counting = name == "position_ids"
        grown = torch.arange(rows, device=buffer.device)[None] if counting else buffer.new_zeros((1, rows))
        undo.set_buffer(parent, name, grown.to(buffer.dtype))


def weigh(
    table: Table, method: Embedding, geometry: Geometry, undo: Undo, kept: Weights | None = None
) -> Weights | None:
    """Let the rows that a host's table gives pass through the method's learned tensors; None where it has none."""
    tensors = method.weights(geometry)
    if not tensors:
        return None
    if table.inner:
        _refuse_weights(table, method, geometry)
    made = kept if kept is not None else Weights(method, _like(table.weight, tensors))
    undo.add_module(table.module, NAME, made)
    undo.hook(table.module.register_forward_hook(_weighed))
    return made


def _weighed(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return module._modules[NAME](output)  # type: ignore[misc]


def _like(example: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    dtype = example.dtype if example.dtype.is_floating_point else torch.float32
    return {name: value.to(device=example.device, dtype=dtype) for name, value in tensors.items()}


def add(
    layer: nn.Module, method: Embedding, geometry: Geometry, undo: Undo, kept: AddedTable | None = None
) -> AddedTable:
    """Add a table of ours before `layer`, the first of its stack."""
    if kept is None:
        tensors = _like(next(layer.parameters()), {**method.weights(geometry), "": method.table(geometry)})
        kept = AddedTable(method, tensors.pop(""), tensors)
    undo.add_module(layer, NAME, kept)
    undo.hook(layer.register_forward_pre_hook(add_positions, with_kwargs=True))
    return kept


def add_positions(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pre-hook of the first layer: hidden states plus the rows at this call's positions."""
    table: AddedTable = layer._modules[NAME]  # type: ignore[assignment]
    if table.proof:
        return args, kwargs
    hidden = args[0] if args else kwargs["hidden_states"]
    given = given_to(layer, args, kwargs)
    positions = positions_of(given)
    if positions is None:
        held = given.get("past_key_values")
        cache = self_attention(held if held is not None else given.get("layer_past"))
        seen = cache.get_seq_length() if cache is not None else 0
        positions = counted(given.get("attention_mask"), hidden.shape[1], seen, hidden.device)
    if table.reindex is not None:
        positions = table.reindex(positions, layer.training, kwargs.get(FORWARD))
    hidden = hidden + table(positions).to(hidden.dtype)
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})
