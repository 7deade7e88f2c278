"""Carrying out a plan: sites cleared and filled, every change on the undo stack, the record written into the config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn

from pospatch.engine import _native, _own, _probe, embedding, positions, rotation
from pospatch.engine._config import own_configs
from pospatch.engine._describe import site_rows
from pospatch.engine._door import Door, door_around
from pospatch.engine._plan import Plan
from pospatch.engine._seams import KEYWORD, carry, note_positions
from pospatch.engine._sites import stack_of
from pospatch.engine._state import State
from pospatch.engine._tables import silent_class
from pospatch.engine._undo import Undo
from pospatch.engine._view import view
from pospatch.geometry import Geometry
from pospatch.methods._base import Embedding, Index, Rotary

if TYPE_CHECKING:
    from pospatch.engine._patch import Patch

__all__ = ["carry_out"]

RECORD_VERSION = 1


def carry_out(plan: Plan, patch: Patch) -> None:
    """Change the model as the plan says; what was done is on `patch.undo`, also where this raises half way."""
    model, whole, undo = plan.model, plan.whole, patch.undo
    patch.trained_length = plan.trained_length()
    patch.base = _native.base_fields(model)
    patch.configs = own_configs(whole, undo)
    patch.sites = site_rows(plan)
    table_method = plan.slots.get("embedding")
    if plan.clearing and not isinstance(table_method, Embedding):
        _clear_tables(plan, undo)
    if isinstance(table_method, Embedding):
        _fill_embedding(plan, table_method, patch)
    if plan.by_module:
        rotation.respin(model, plan.sites, plan.spectra(), undo)
        if plan.sites.sincos:
            _own.respin_sincos(plan.sites, plan.spectra()[None], _reach(plan), undo)
    elif plan.native_rotation_goes() and not plan.partial:
        rotation.clear(plan.sites, undo)
        _own.clear_sincos(plan.sites, undo)
    if plan.clearing:
        embedding.hush(plan.sites.hushed.values(), undo)
    if plan.clearing:
        _clear_bias(plan, undo)
    _add_states(plan, patch)
    _open_doors(plan, undo)
    for module in plan.sites.rotary.values():
        if not plan.by_module:
            undo.hook(module.register_forward_hook(note_positions, with_kwargs=True))
    _reindex(plan, patch)
    patch.native = _native.write(model, patch, plan)
    if isinstance(table_method, Embedding):
        plan.sites.reprobe(model)
    record = {
        "version": RECORD_VERSION,
        "native": patch.native,
        "base": patch.base,
        "stack": [{"method": method.name, **method.options()} for method in plan.stack],
        **({} if patch.part is None else {"part": patch.part}),
    }
    for _, config in patch.configs:
        if config is whole.config:
            vars(config)["pospatch"] = record
    patch.snapshots = [dict(vars(config)) for _, config in patch.configs]


def _reach(plan: Plan) -> int:
    """Positions that a table of sines and cosines must hold."""
    top = plan.top
    lengths = [top.target_length(g) or 0 for g in plan.layers.values()] if isinstance(top, Rotary) else []
    return max(lengths, default=0)


def _clear_bias(plan: Plan, undo: Undo) -> None:
    """Relative biases: one that the host's function gets is dropped there, one that its owner reads itself reads as zeros."""
    for path, bias in plan.sites.bias.items():
        if plan.partial and not (bias.inner and _in_cleared_layer(plan, path)):
            continue  # layers that were not chosen still read it
        undo.freeze(bias.weight)
        if bias.inner:
            undo.set_class(bias.module, silent_class(type(bias.module), bias.tensor))


def _in_cleared_layer(plan: Plan, path: str) -> bool:
    return any(path.startswith(f"{owner}.") and _clears(plan, geometry) for owner, geometry in plan.layers.items())


def _clears(plan: Plan, geometry: Geometry) -> bool:
    """True where what is natively in this layer goes."""
    return any(geometry.layer in method.chosen(geometry.layers) for method in plan.clearing)


def _clear_tables(plan: Plan, undo: Undo) -> None:
    for table in plan.sites.tables:
        embedding.clear(table, undo)
        embedding.regrow(table.parent, plan.sites.host.buffers, embedding.UNBOUNDED, undo)


def _fill_embedding(plan: Plan, method: Embedding, patch: Patch) -> None:
    firsts = plan.firsts()
    if plan.sites.tables:
        for table in plan.sites.tables:
            rows = table.matrix()[table.offset :].float()
            _, geometry = firsts[stack_of(table.path, plan.paired)]
            geometry = geometry.with_(table=rows, length=rows.shape[0], width=rows.shape[1])
            key = (table.path, "weight")
            if not table.trained:
                key = (table.path, "table")
                patch.kept[key] = embedding.exchange(table, method, geometry, patch.undo, patch.kept.get(key))
                continue
            patch.replaced[f"{table.path}.{table.tensor}"] = table.weight
            patch.kept[key] = embedding.replace(table, method, geometry, patch.undo, patch.kept.get(key))
            beside = (table.path, embedding.NAME)
            if made := embedding.weigh(table, method, geometry, patch.undo, patch.kept.get(beside)):
                patch.kept[beside] = made
            embedding.regrow(table.parent, plan.sites.host.buffers, patch.kept[key].shape[0], patch.undo)
        return
    for path, geometry in firsts.values():
        layer = _first_layer(plan.model, path)
        key = (path, "table")
        patch.kept[key] = embedding.add(layer, method, geometry, patch.undo, patch.kept.get(key))


def _reindex(plan: Plan, patch: Patch) -> None:
    method, table_method = plan.slots.get("positions"), plan.slots.get("embedding")
    if not isinstance(method, Index):
        if isinstance(table_method, Embedding):
            _read_by_rule(plan, table_method, patch)
        return
    readers, firsts = positions.Readers(plan.model, method, patch.undo), plan.firsts()
    for table in plan.sites.tables if plan.tables_read() else ():
        geometry = firsts[stack_of(table.path, plan.paired)][1].with_(length=table.rows)
        patch.readers[table.path] = readers.at_table(table, geometry)
        if length := method.target_length(geometry):
            rows = max(length, table.rows) + table.offset
            embedding.regrow(table.parent, plan.sites.host.buffers, rows, patch.undo)
    for path, geometry in firsts.values():
        if added := patch.kept.get((path, "table")):
            layer = _first_path(path)
            geometry = geometry.with_(length=added.weight.shape[0])
            patch.readers[f"{layer}.{embedding.NAME}"] = readers.at_added(f"{layer}.{embedding.NAME}", added, geometry)
    for path in plan.sites.rotary if plan.rotary_read() else ():
        patch.readers[path] = readers.at_rotary(path, plan.reached(next(iter(plan.layers))))
    for path, module in plan.sites.attention.items():
        state = module._modules.get(KEYWORD)
        if isinstance(state, State) and plan.attention_reads(state.methods):
            patch.readers[path] = readers.at_attention(path, state, plan.reached(path))


def _read_by_rule(plan: Plan, method: Embedding, patch: Patch) -> None:
    """A table whose own method chooses the rows."""
    for table in plan.sites.tables:
        geometry = plan.firsts()[stack_of(table.path, plan.paired)][1]
        if (rule := method.reading(geometry)) is not None:
            readers = positions.Readers(plan.model, rule, patch.undo)
            patch.readers[table.path] = readers.at_table(table, geometry.with_(length=table.rows))


def _add_states(plan: Plan, patch: Patch) -> None:
    for path, geometry in plan.layers.items():
        module = plan.sites.attention[path]
        acting = plan.acting(path, geometry)
        cleared = _clears(plan, geometry)
        still = plan.partial and cleared and bool(plan.sites.rotary)
        drop = cleared and bool(plan.sites.native_bias())
        silenced = plan.sites.silenced() if cleared else ()
        if not acting and not still and not drop and not (plan.clearing and not plan.by_module):
            continue
        own = path in plan.sites.own
        carrier = plan.sites.host.carrier if own else ""
        state = State(
            plan.seen_by(path, geometry), acting, drop_bias=drop, still=still, carrier=carrier, silenced=silenced
        )
        _give_weights(plan, path, state, module, patch)
        if not own:
            patch.undo.set_attribute(module, "config", view(module.config))
        patch.undo.add_module(module, KEYWORD, state)
        patch.undo.hook(module.register_forward_pre_hook(_own.carry_own if own else carry, with_kwargs=True))


def _open_doors(plan: Plan, undo: Undo) -> None:
    """Where an image's size or time steps enter, note them for the attention modules that read them."""
    doors: dict[str, Door] = {}
    for path, module in plan.sites.attention.items():
        state = module._modules.get(KEYWORD)
        if not isinstance(state, State):
            continue
        reads_grid = plan.base[path].grid and any(method.reads_grid for method in state.methods.values())
        if not (reads_grid or plan.sites.host.steps):
            continue
        found = door_around(plan.model, path, plan.sites.host.steps)
        if found is None:
            continue
        holder, door = found
        if holder not in doors:
            doors[holder] = door
            outer = plan.model.get_submodule(holder)
            undo.hook(outer.register_forward_pre_hook(door.begins, with_kwargs=True))
            undo.hook(outer.register_forward_hook(door.ends, always_call=True))
        state.door = doors[holder]


def _give_weights(plan: Plan, path: str, state: State, module: nn.Module, patch: Patch) -> None:
    example = next(module.parameters(), None)  # quantized projections may hold none
    example = next(plan.model.parameters()) if example is None else example
    for slot, method in state.methods.items():
        for name, initial in method.weights(state.geometry).items():
            key = (path, f"{slot}__{name}")
            if key not in patch.kept:
                dtype = example.dtype if example.dtype.is_floating_point else torch.float32
                device = _probe.device_of(plan.model) if example.is_meta else example.device
                patch.kept[key] = nn.Parameter(initial.to(device=device, dtype=dtype))
            state.register_parameter(key[1], patch.kept[key])


def _first_layer(model: Any, path: str) -> nn.Module:
    """The block of the first attention."""
    return model.get_submodule(_first_path(path))


def _first_path(path: str) -> str:
    """The path of the first ancestor of an attention that stands in a list of blocks."""
    parts = path.split(".")
    for end, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: end + 1])
    return path
