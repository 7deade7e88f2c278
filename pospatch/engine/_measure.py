"""How large a patch would be, found without making its tensors: what a checkpoint asks for is checked before memory is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch._subclasses.fake_tensor import FakeTensorMode

from pospatch.errors import BadOption
from pospatch.methods._base import Embedding, Index, Rotary

if TYPE_CHECKING:
    from pospatch.engine._plan import Plan

__all__ = ["check_size"]

SLACK = 2**20  # numbers; tables of indices and frequencies that no checkpoint holds
FURTHEST = 2**24  # positions; tables of indices are made for as many


def check_size(plan: Plan, limit: int) -> None:
    """Refuse a plan whose own tensors would hold more numbers than `limit`, or that reaches further than anything does.

    Raises:
        BadOption: naming the methods, what they ask for and the limit.
    """
    names = " + ".join(method.name for method in plan.stack)
    if (furthest := _reach(plan)) > FURTHEST:
        raise BadOption(f"{names} would prepare {furthest} positions; a saved patch may ask for {FURTHEST}")
    for count, holder, held in (
        (_learned(plan), "the file of the patch's tensors", limit),
        (_fixed(plan), "the whole model", sum(value.numel() for value in plan.whole.parameters())),
    ):
        if count > 2 * held + SLACK:
            raise BadOption(f"{names} asks for tensors of {count} numbers, and {holder} has {held}")


def _learned(plan: Plan) -> int:
    """Numbers in the learned tensors of the patch, from shapes alone."""
    count, table = 0, plan.slots.get("embedding")
    with FakeTensorMode(allow_non_fake_inputs=True):
        for path, geometry in plan.layers.items():
            seen = plan.seen_by(path, geometry)
            for method in plan.acting(path, geometry).values():
                count += sum(value.numel() for value in method.weights(seen).values())
        if isinstance(table, Embedding):
            for _, geometry in plan.firsts().values():
                count += sum(value.numel() for value in table.weights(geometry).values())
                count += 0 if table.fixed else table.table(geometry).numel()
    return count


def _fixed(plan: Plan) -> int:
    """Numbers in tables that follow from their formula and are not saved everywhere."""
    table = plan.slots.get("embedding")
    if not isinstance(table, Embedding) or not table.fixed:
        return 0
    with FakeTensorMode(allow_non_fake_inputs=True):
        return sum(table.table(geometry).numel() for _, geometry in plan.firsts().values())


def _reach(plan: Plan) -> int:
    """The largest position that a table of indices, or of sines and cosines, is made for."""
    reached = [0]
    if isinstance(index := plan.slots.get("positions"), Index):
        reached += [index.target_length(plan.reached(path)) or 0 for path in plan.layers]
    if isinstance(plan.top, Rotary) and plan.sites.sincos:
        reached += [plan.top.target_length(geometry) or 0 for geometry in plan.layers.values()]
    return max(reached)
