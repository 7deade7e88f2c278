"""What a record alone says: the base without its patch, and the frequencies that the recorded methods give on it."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from pospatch.checkpoint.doctor._evidence import Evidence
from pospatch.checkpoint.doctor._used import Used, look
from pospatch.engine._native import FIELDS
from pospatch.errors import PospatchError
from pospatch.geometry import Geometry, Rotation
from pospatch.methods._base import Rotary

__all__ = ["bare", "recorded_spectrum"]


def bare(seen: Evidence) -> Any:
    """The config without the patch that its record describes."""
    config = copy.deepcopy(seen.used.config)
    fields = seen.record.get("base") if isinstance(seen.record, dict) else None
    for name, value in (fields if isinstance(fields, dict) else {}).items():
        if name in FIELDS and isinstance(value, dict if name == "rope_parameters" else int):
            setattr(config.get_text_config(), name, copy.deepcopy(value))
    return config


def recorded_spectrum(seen: Evidence) -> tuple[Tensor, float] | None:
    """(inv_freq, amplitude) by the record of a natively saved patch; None where it puts no fixed spectrum there."""
    rotary = [method for method in seen.stack if isinstance(method, Rotary)]
    native = isinstance(seen.record, dict) and bool(seen.record.get("native"))
    if (
        seen.kind != "model"
        or not seen.used.spectra
        or isinstance(seen.raw.get("decoder"), dict)  # two configs with positions (t5gemma), one record of their base
        or not native
        or not rotary
        or any(m.dynamic or not m.spectral for m in rotary)
    ):
        return None
    try:
        geometry = _geometry(look(bare(seen)))
        for method in rotary:
            if geometry is None:
                return None
            inv_freq, amplitude = method.frequencies(geometry)
            theta = getattr(method, "rope_theta", None) or geometry.rotation.theta  # type: ignore[union-attr]
            turned = Rotation(dim=2 * len(inv_freq), theta=theta, inv_freq=inv_freq, attention_factor=amplitude)
            geometry = geometry.with_(rotation=turned)
    except (PospatchError, ArithmeticError, LookupError, ValueError, TypeError, AttributeError):
        return None  # numbers that give no frequencies: other checks say why
    return inv_freq, amplitude


def _geometry(base: Used) -> Geometry | None:
    """Shape and rotation of the layers that see everything."""
    label = next((each for each in (None, "full_attention") if each in base.spectra), None)
    if label not in base.spectra or label not in base.thetas or not base.length:
        return None
    inv_freq, amplitude = base.spectra[label]
    text = base.text.to_dict()
    heads = int(text["num_attention_heads"])
    kind = str(base.rope.get(label, {}).get("rope_type", "default"))
    return Geometry(
        heads=heads,
        head_dim=int(text.get("head_dim") or text["hidden_size"] // heads),
        width=int(text["hidden_size"]),
        length=base.trained or base.length,
        rotation=Rotation(
            dim=2 * len(inv_freq),
            theta=base.thetas[label],
            inv_freq=inv_freq,
            attention_factor=amplitude,
            rope_type=kind,
        ),
    )
