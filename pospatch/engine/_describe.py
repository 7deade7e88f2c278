"""The sites of a model, before and after a patch, as rows for tables."""

from __future__ import annotations

from typing import Any

from pospatch.engine._parts import choose
from pospatch.engine._plan import Plan
from pospatch.engine._sites import find

__all__ = ["describe", "site_rows"]

_SITES = {
    "positions": ("positions",),
    "embedding": ("embedding",),
    "rotation": ("rotation", "scaling"),
    "score": ("norm", "temperature", "score"),
}


def site_rows(plan: Plan) -> list[dict[str, Any]]:
    """One row a site: what is natively there, what stands there now, in which modules."""
    sites = plan.sites
    natives = {
        "embedding": ", ".join(f"{type(t.module).__name__} of {t.rows}" for t in sites.tables[:1]),
        "rotation": ", ".join(sorted({type(module).__name__ for module in sites.rotary.values()}))
        or ", ".join(table.path for table in sites.sincos[:1]),
        "score": "relative bias" if sites.bias or sites.silenced() else "",
    }
    paths = {
        "positions": _reading(plan) if "positions" in plan.slots else [],
        "embedding": [table.path for table in sites.tables],
        "rotation": list(sites.rotary),
        "score": list(sites.attention),
    }
    rows = []
    for site, slots in _SITES.items():
        now = [plan.slots[slot].name for slot in slots if slot in plan.slots]
        native = natives.get(site) or "none"
        stays = native if native != "none" and not plan.clearing else "none"
        rows.append({"site": site, "native": native, "now": " + ".join(now) or stays, "modules": paths.get(site, [])})
    return rows


def _reading(plan: Plan) -> list[str]:
    """Modules that read the positions which an Index method chooses."""
    sites = plan.sites
    tables = [table.path for table in sites.tables] if plan.tables_read() else []
    rotary = list(sites.rotary) if plan.rotary_read() else []
    inside = [path for path, geometry in plan.layers.items() if plan.attention_reads(plan.acting(path, geometry))]
    return [*tables, *rotary, *inside]


def describe(model: Any) -> tuple[list[dict[str, Any]], int | None]:
    """The sites of an unpatched model and its trained length."""
    part, half = choose(model, None)
    plan = Plan(part, find(part, half), [], {}, model)
    return site_rows(plan), plan.trained_length()
