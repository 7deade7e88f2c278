"""One patch: a stack of methods on one model, attached as a whole, proven, recorded, and undone as a whole."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch.nn as nn

from pospatch.engine._attach import carry_out
from pospatch.engine._config import carry_back
from pospatch.engine._fit import check
from pospatch.engine._geometry import geometries
from pospatch.engine._measure import check_size
from pospatch.engine._parts import choose
from pospatch.engine._plan import Plan
from pospatch.engine._proof import prove
from pospatch.engine._seams import register
from pospatch.engine._sites import Sites, check_halves, find
from pospatch.engine._survey import declared, survey
from pospatch.engine._undo import Undo
from pospatch.engine.positions import Reindex
from pospatch.errors import AlreadyPatched, UnsupportedHost
from pospatch.geometry import Geometry
from pospatch.methods._base import Method, Nothing, Rotary
from pospatch.registry import build

__all__ = ["Patch", "attach", "merge"]

Kept = dict[tuple[str, str], Any]


@dataclass
class Patch:
    """What stands on a model, and the way back."""

    stack: list[Method]
    undo: Undo = field(default_factory=Undo)
    configs: list[tuple[Any, Any]] = field(default_factory=list)
    snapshots: list[dict[str, Any]] = field(default_factory=list)
    sites: list[dict[str, Any]] = field(default_factory=list)
    kept: Kept = field(default_factory=dict)
    replaced: dict[str, nn.Parameter] = field(default_factory=dict)  # the host's tables that stand aside, by name
    native: bool = False
    part: str | None = None
    trained_length: int | None = None
    base: dict[str, Any] = field(default_factory=dict)
    found: Sites | None = None
    layers: dict[str, Geometry] = field(default_factory=dict)
    readers: dict[str, Reindex] = field(default_factory=dict)

    def rehearse(self, model: Any, stack: list[Method]) -> None:
        """Raise where another stack could not take this one's place; what stands is not touched."""
        assert self.found is not None
        if around := [table.path for table in self.found.tables if table.wrapped]:
            raise UnsupportedHost(
                f"peft has wrapped {around[0]} since the patch was put on, so no other patch can take its place; merge the "
                "adapter first (model.merge_and_unload()), or apply every method before it"
            )
        plan = Plan(model, self.found, stack, self.layers)
        check(plan)
        plan.rehearse()

    def kept_for(self, stack: list[Method]) -> Kept:
        """Learned tensors of the methods that stay in `stack` as they are; one with other options starts anew."""
        staying = {_ROLES.get(method.slot, method.slot) for method in stack if method in self.stack}
        return {key: value for key, value in self.kept.items() if _role(key[1]) in staying}

    def detach(self) -> None:
        """Play everything back; trained weights of the host stay as they are."""
        carry_back(self.configs, self.snapshots)
        self.undo.play()


_ROLES = {"rotation": "rotary", "scaling": "rotary"}  # slots that a layer's State keeps under another name


def _role(name: str) -> str:
    role, found, _ = name.partition("__")
    return role if found else "embedding"


def merge(stack: list[Method], added: list[Method]) -> list[Method]:
    """The stack with more methods: the same method again replaces itself, another in the same slot is refused.

    Raises:
        AlreadyPatched: naming who holds the slot.
    """
    result = list(stack)
    for method in added:
        holder = next((item for item in result if item.slot == method.slot), None)
        if holder is not None and holder.name != method.name:
            raise AlreadyPatched(
                f"{method.name!r} needs the {method.slot} site and {holder.name!r} holds it; call pospatch.remove(model) first"
            )
        if holder is not None:
            result[result.index(holder)] = method
        else:
            result.append(method)
    others = [method.name for method in result if method.slot not in ("none", "norm", "temperature")]
    if others and any(method.slot == "none" for method in result):
        raise AlreadyPatched(
            f"'nope' clears every site, so {others[0]!r} cannot stand beside it, only what scales q and k (qk_norm, logn); "
            "call pospatch.remove(model) first"
        )
    return result


def attach(whole: Any, stack: list[Method], kept: Kept, part: str | None = None, largest: int | None = None) -> Patch:
    """Attach a stack to an unpatched model, or to one part of it; or raise and leave it as it was.

    kept: learned tensors of an earlier attachment by (path, name), so that training survives when the stack grows.
    largest: numbers that the tensors of a stack from a checkpoint may hold, known from its files; None where the user asks.
    """
    register()
    model, half = choose(whole, part)
    sites = find(model, half)
    check_halves(model, sites)
    if sites.detected and not all(isinstance(method, Nothing) for method in stack):
        _prove_detected(model, sites, whole)
    spectral = all(isinstance(method, Rotary) and method.spectral and not method.dynamic for method in stack)
    seen = declared(sites) if spectral and sites.rotary else None
    plan = _planned(model, sites, stack, seen, whole)
    if seen is not None and not plan.by_module:  # what acts inside attention needs what attention really gets
        plan = _planned(model, sites, stack, None, whole)
    check(plan)
    if largest is not None:
        check_size(plan, largest)
    patch = Patch(stack=stack, kept=dict(kept), found=sites, layers=plan.base, part=part)
    try:
        carry_out(plan, patch)
        prove(model, plan, patch.readers)
    except BaseException:
        patch.undo.play()
        raise
    if sites.detected:
        _say_detected(model, sites)
    return patch


def _planned(model: Any, sites: Sites, stack: list[Method], seen: dict[str, Any] | None, whole: Any) -> Plan:
    layers = geometries(model, sites, survey(model, sites) if seen is None else seen)
    return Plan(model, sites, stack, layers, whole)


def _prove_detected(model: Any, sites: Sites, whole: Any) -> None:
    """A wiring that nobody wrote down: with every site that was found cleared, no position may be left."""
    plan = _planned(model, sites, [build("nope")], None, whole)
    trial = Patch(stack=plan.stack)
    try:
        carry_out(plan, trial)
        prove(model, plan, {})
    finally:
        trial.undo.play()


def _say_detected(model: Any, sites: Sites) -> None:
    """Once a family: nobody wrote a row for it, so its wiring was found and proven on this model."""
    warnings.warn(
        f"no row describes the family {model.config.model_type!r}: {len(sites.attention)} attention modules, "
        f"{len(sites.rotary)} rotary modules and {len(sites.tables)} tables of positions were detected, and proven by a forward",
        stacklevel=2,
    )
