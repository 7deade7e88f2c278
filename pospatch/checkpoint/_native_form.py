"""Which exact native form a patched model has: its config and its weights as plain transformers will read them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pospatch.checkpoint._save import is_patch_tensor
from pospatch.checkpoint._spectrum import as_longrope, nothing_turns
from pospatch.engine._parts import choose
from pospatch.engine._patch import Patch
from pospatch.engine._plan import Plan
from pospatch.engine._view import real
from pospatch.errors import UnsupportedHost
from pospatch.methods._base import Index, Rotary, Scaling

__all__ = ["Form", "native_form"]

WAY_OUT = (
    "model.save_pretrained(path) keeps it exact for whoever has pospatch; pospatch.save_remote(model, path) for "
    "trust_remote_code=True"
)


@dataclass
class Form:
    """What will be written: a class of transformers, its config, its weights, and how to call it in one phrase."""

    name: str
    model_class: Any
    config: Any
    state: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)


def native_form(model: Any, patch: Patch | None) -> Form:
    """The exact form of what stands on the model, in its own architecture.

    Raises:
        UnsupportedHost: there is none; the message says why and what can be done instead.
    """
    config = _plain_config(model)
    state = {name: value for name, value in model.state_dict().items() if not is_patch_tensor(name)}
    form = Form("as it is, unpatched", type(model), config, state)
    if patch is None:
        return form
    assert patch.found is not None
    plan = Plan(choose(model, patch.part)[0], patch.found, patch.stack, patch.layers, model)
    if patch.native:
        form.name = _native_name(plan, config)
        return form
    _only_static(plan)
    if isinstance(plan.slots.get("positions"), Index):
        return _reread_tables(form, plan, patch)
    if plan.sites.tables and not plan.top:
        return _zero_tables(form, plan)
    return _spectrum(form, plan)


def _plain_config(model: Any) -> Any:
    """A copy of the config without our record."""
    config = copy.deepcopy(real(model.config))
    vars(config).pop("pospatch", None)
    config.architectures = [type(model).__name__]
    config.dtype = next(model.parameters()).dtype
    return config


def _native_name(plan: Plan, config: Any) -> str:
    if "embedding" in plan.slots:
        return f"a table of {plan.sites.tables[0].rows} positions"
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    types = parameters.get("rope_type") or {
        label: item.get("rope_type") for label, item in parameters.items() if isinstance(item, dict)
    }
    return f"rope_parameters of type {types!r}" if types else "as it is"


def _only_static(plan: Plan) -> None:
    """Refuse what no config and no weight of the same architecture can say."""
    for method in plan.stack:
        if isinstance(method, Rotary) and method.dynamic:
            static = "'yarn'" if "yarn" in method.name else "'ntk'"
            raise UnsupportedHost(
                f"{method.name} chooses its frequencies by the length of the input and has no native form; nearest: apply "
                f"{static} with the same factor and export that, or {WAY_OUT}"
            )
        if isinstance(method, Rotary) and not method.spectral:
            raise UnsupportedHost(
                f"{method.name} is no fixed spectrum shared by all layers, so no rope_parameters say it; nearest: {WAY_OUT}"
            )
        if method.slot in ("norm", "score", "temperature"):
            raise UnsupportedHost(
                f"{method.name} acts on the attention scores, which no config of {type(plan.model).__name__} describes; "
                f"nearest: {WAY_OUT}"
            )
    if "embedding" in plan.slots and not plan.sites.tables:
        raise UnsupportedHost(
            f"{plan.slots['embedding'].name} adds a table and {type(plan.model).__name__} has no place for it; "
            f"nearest: {WAY_OUT}"
        )
    if plan.partial or (plan.top is not None and plan.top.layers not in (None, "all")):
        raise UnsupportedHost(f"a patch of some layers only has no native form; nearest: {WAY_OUT}")


def _reread_tables(form: Form, plan: Plan, patch: Patch) -> Form:
    """An Index method at a table is a longer table: row n is the old row that position n reads."""
    index: Any = plan.slots["positions"]
    if index.training_only:
        return form
    if not plan.sites.tables or len(plan.stack) > 1:
        raise UnsupportedHost(
            f"{index.name} changes the positions that a rotary module reads, which no config says; nearest: {WAY_OUT}"
        )
    for table in plan.sites.tables:
        reader = patch.readers[table.path]
        length = index.target_length(reader.geometry)
        if length is None:
            raise UnsupportedHost(f"{index.name} has no last position, so no table can hold it; nearest: {WAY_OUT}")
        ids = torch.arange(table.offset + length, device=table.weight.device)[None]
        form.state[_name(plan, table)] = table.weight.detach()[reader.rows(ids, training=False)[0]].clone()
        counted = length + (table.offset if plan.sites.host.counts_offset else 0)
        form.config.get_text_config().max_position_embeddings = counted
        form.name = f"a table of {length} positions"
    return form


def _name(plan: Plan, table: Any) -> str:
    """The table's name in the whole model's state dict."""
    return next(name for name, value in plan.whole.named_parameters() if value is table.weight)


def _zero_tables(form: Form, plan: Plan) -> Form:
    if plan.slots.keys() - {"none"}:
        raise UnsupportedHost(
            f"{plan.stack[-1].name} has no native form on {type(plan.model).__name__}; nearest: {WAY_OUT}"
        )
    for table in plan.sites.tables:
        form.state[_name(plan, table)] = torch.zeros_like(table.weight.detach())
    form.name = "a table of zeros"
    form.notes.append(f"reads {plan.sites.tables[0].rows} tokens: without positions there is no limit, a table has one")
    return form


def _spectrum(form: Form, plan: Plan) -> Form:
    if not plan.sites.rotary:
        raise UnsupportedHost(
            f"{plan.stack[-1].name} needs rope_parameters, which the config of {type(plan.model).__name__} has not; "
            f"nearest: {WAY_OUT}"
        )
    text = form.config.get_text_config()
    if plan.top is None:
        base = next(iter(plan.base.values())).rotation
        _set(text, {None: nothing_turns(base.theta if base is not None else 10000.0)})
        form.name = "rope_parameters of type 'proportional' with no pair turning"
        return form
    written: dict[str | None, dict[str, Any]] = {}
    for path, geometry in plan.layers.items():
        label = plan.label(path, geometry)
        if label not in written and plan.scales(plan.top, label):
            source = geometry if isinstance(plan.top, Scaling) else plan.base[path]
            inv_freq, amplitude = plan.spectra()[label]
            written[label] = as_longrope(inv_freq, amplitude, source)
    _set(text, written)
    form.name = "rope_parameters of type 'longrope' with equal lists"
    return form


def _set(text: Any, written: dict[str | None, dict[str, Any]]) -> None:
    """Put rope_parameters into a config; layer types that are not written keep theirs."""
    old = text.rope_parameters or {}
    nested = {label: item for label, item in old.items() if isinstance(item, dict)}
    if not nested:
        text.rope_parameters = next(iter(written.values()))
    elif None in written:
        text.rope_parameters = {label: dict(written[None]) for label in nested}
    else:
        text.rope_parameters = {**nested, **written}
