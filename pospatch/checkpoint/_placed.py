"""The one fixed spectrum that a patch put on a host that had no rotary encoding."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pospatch.checkpoint._spectrum import as_longrope
from pospatch.engine._native import same_spectrum
from pospatch.engine._plan import Plan
from pospatch.geometry import Geometry
from pospatch.methods._base import Rotary, Scaling

__all__ = ["Placed", "parameters", "placed"]

Placed = tuple[Rotary, Geometry, Tensor, float]


def placed(plan: Plan) -> Placed | None:
    """(method, geometry it reads, inv_freq, amplitude), or None where anything else acts or frequencies are not fixed."""
    top = plan.top
    if not isinstance(top, Rotary) or set(plan.slots) - {"rotation", "scaling"} or plan.sites.rotary:
        return None
    rotary = [method for method in plan.stack if isinstance(method, Rotary)]
    if any(m.dynamic or not m.spectral or m.layers not in (None, "all") for m in rotary):
        return None
    path, geometry = next(iter(plan.layers.items()))
    source = geometry if isinstance(top, Scaling) else plan.base[path]
    inv_freq, amplitude = top.frequencies(source)
    return top, source, inv_freq, float(amplitude)


def parameters(found: Placed, config: Any) -> dict[str, Any]:
    """rope_parameters of the spectrum for another architecture's config: the plainest that is equal to the bit."""
    top, geometry, inv_freq, amplitude = found
    share = 2 * inv_freq.shape[-1] / geometry.head_dim
    tried = [{"rope_type": "default", "rope_theta": top.theta(geometry)}] if hasattr(top, "theta") else []
    if (own := top.rope_parameters(geometry)) is not None:
        tried.append(own)
    for candidate in tried:
        whole = {**candidate, "partial_rotary_factor": candidate.get("partial_rotary_factor", share)}
        config.rope_parameters = dict(whole)
        if same_spectrum([config], None, whole, (inv_freq, amplitude)):
            return whole
    return {"partial_rotary_factor": share, **as_longrope(inv_freq, amplitude, geometry)}
