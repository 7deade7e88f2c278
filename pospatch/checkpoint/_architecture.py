"""Where a patched model equals another architecture of transformers, that one's config and weights."""

from __future__ import annotations

from typing import Any

from pospatch.checkpoint import _to_gpt_neox, _to_roformer, _to_smollm3
from pospatch.checkpoint._native_form import Form
from pospatch.engine._patch import Patch
from pospatch.engine._plan import Plan
from pospatch.errors import UnsupportedHost

__all__ = ["architecture_form"]

_ROUTES = (_to_gpt_neox, _to_roformer, _to_smollm3)


def architecture_form(model: Any, patch: Patch | None) -> Form | None:
    """The other architecture's form, or None where no route starts at this pair.

    Raises:
        UnsupportedHost: a route starts here, and this model is not exactly equal to its end.
    """
    if patch is None or patch.found is None or patch.part is not None:
        return None
    plan = Plan(model, patch.found, patch.stack, patch.layers)
    for route in _ROUTES:
        if route.starts(model, plan):
            if reason := route.hindrance(model):
                raise UnsupportedHost(
                    f"{type(model).__name__} with {plan.stack[-1].name} is no {route.TARGET}: {reason}"
                )
            return route.form(model, plan)
    return None
