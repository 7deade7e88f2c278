"""Whether a stack of methods fits a model; asked before anything is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pospatch.engine._layout import UNKNOWN
from pospatch.engine._sites import check_halves
from pospatch.errors import BadOption, UnsupportedHost
from pospatch.geometry import Geometry
from pospatch.methods._base import Bands, Bias, Embedding, Index, Method, Scaling

if TYPE_CHECKING:
    from pospatch.engine._plan import Plan

__all__ = ["check"]


def check(plan: Plan) -> None:
    """Raise where a method does not fit.

    Raises:
        BadOption, UnsupportedHost: naming the method and why.
    """
    for method in plan.stack:
        if not any(geometry.layer in method.chosen(geometry.layers) for geometry in plan.layers.values()):
            count = max(geometry.layers for geometry in plan.layers.values())
            raise BadOption(
                f"{method.name}: layers={method.layers!r} chooses none of the {count} layers; nothing would change"
            )
        for path, geometry in plan.layers.items():
            if geometry.layer in method.chosen(geometry.layers) and not plan.left_alone(method, path):
                method.fits(_fitting(plan, method, path, geometry))
        if isinstance(method, Index):
            _check_index(plan, method)
        if isinstance(method, Scaling) and not any(
            plan.scales(method, plan.label(p, g)) for p, g in plan.layers.items()
        ):
            raise UnsupportedHost(
                f"{method.name} scales layers of full attention and {type(plan.model).__name__} has none, so "
                "nothing would change"
            )
        if isinstance(method, Bands):
            _check_bands(plan, method)
    _check_reach(plan)
    if plan.partial and plan.sites.tables:
        raise UnsupportedHost(
            f"{plan.clearing[0].name} with layers={plan.clearing[0].layers}: the table of positions is added once, "
            "before all layers, and cannot be cleared for some; leave layers out"
        )


def _fitting(plan: Plan, method: Method, path: str, geometry: Geometry) -> Geometry:
    """The geometry that a method must fit."""
    if isinstance(method, Index):
        return plan.reached(path)
    return geometry.with_(rotation=plan.base[path].rotation) if method is plan.slots.get("rotation") else geometry


def _check_reach(plan: Plan) -> None:
    """Refuse what an attention with mathematics of its own, or a rotation of a form unknown, would not take up."""
    check_halves(plan.model, plan.sites)
    for path, geometry in plan.layers.items():
        acting = plan.acting(path, geometry)
        if path in plan.sites.own:
            for slot, method in acting.items():
                if slot != "score" or not isinstance(method, Bias) or not plan.sites.host.carrier:
                    what = "an additive bias alone" if plan.sites.host.carrier else "nothing"
                    raise UnsupportedHost(
                        f"{method.name} acts on q and k, and the attention of {plan.model.config.model_type!r} has "
                        f"mathematics of its own, into which {what} can be brought from outside"
                    )
        inside = acting.get("score") or acting.get("rotary")
        if inside is not None and getattr(plan.sites.attention[path], "is_kv_shared_layer", False):
            raise UnsupportedHost(
                f"{inside.name} acts inside attention, where it must know its keys, and {path} reuses those of an earlier layer "
                f"(num_kv_shared_layers); choose layers before it with layers=[...], or a method that only changes frequencies"
            )
        native = plan.base[path].rotation
        fresh = acting.get("rotary") is plan.slots.get("rotation")  # pairs of its own
        if "rotary" in acting and not fresh and native is not None and native.layout == UNKNOWN:
            raise UnsupportedHost(
                f"{acting['rotary'].name} has to act inside attention, and the rotation of {plan.model.config.model_type!r} "
                f"({path}) pairs dimensions in a way that was not recognised; methods that only change frequencies work"
            )


def _check_index(plan: Plan, method: Index) -> None:
    if method.layers not in (None, "all"):
        raise BadOption(
            f"{method.name}: layers={method.layers!r}, but positions are read once, for all layers; leave it out"
        )
    table = plan.slots.get("embedding")
    if isinstance(table, Embedding) and any(table.reading(geometry) for geometry in plan.base.values()):
        raise UnsupportedHost(
            f"{table.name} reads its rows by a rule of its own and {method.name} by another; "
            f"give {table.name} short='plain'"
        )
    absolute = plan.tables_read() or isinstance(table, Embedding)
    relative = plan.rotary_read() or any(
        plan.attention_reads(plan.acting(path, geometry)) for path, geometry in plan.layers.items()
    )
    if method.two_levels and not (absolute and relative):
        lacks = "a rotary encoding or a bias" if absolute else "a table of positions"
        raise UnsupportedHost(
            f"{method.name} gives a table one position and a rotation or bias another, and here is no {lacks}; "
            f'apply(model, ["learned", "rope", ("{method.name}", {{...}})])'
        )
    if absolute or relative:
        return
    holders = " and ".join(repr(item.name) for item in plan.stack if item is not method)
    why = f"{holders} takes their place" if holders else "this model has neither"
    raise UnsupportedHost(
        f"{method.name} changes the positions that a table, a rotary module or a bias of ours reads, and {why}"
    )


def _check_bands(plan: Plan, method: Bands) -> None:
    """Refuse what would change nothing: no layer sees beyond the first band."""
    kept, windows = set(), set()
    for geometry in plan.layers.values():
        near = method.bands(geometry)[0]
        if geometry.window is None or not near.stop or near.unit > 1 or near.amplitude != 1.0:
            return
        kept.add(near.stop)
        windows.add(geometry.window)
    if max(windows) <= min(kept):
        raise UnsupportedHost(
            f"{method.name} leaves the nearest {min(kept)} tokens as they are and no layer sees further than its sliding "
            f"window of {max(windows)}; nothing would change"
        )
