"""Which base a patch belongs to: its name, and the fields of its config that decide whether a patch made on it fits."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from pospatch.errors import CheckpointError

__all__ = ["check", "describe"]

FIELDS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "rope_parameters",
)


def describe(model: Any, patch: Any) -> dict[str, Any]:
    """Name, fields and their hash for the unpatched base of a model."""
    config = next((old for old, new in patch.configs if new is model.config), model.config) if patch else model.config
    fields = _fields(config)
    return {"name": _name(model), "fields": fields, "sha256": _hash(fields)}


def check(model: Any, base: Any, source: str, patch: Any = None) -> None:
    """Refuse a base that is not the one a patch was made on; `patch` is what stands on the model.

    Raises:
        CheckpointError: naming the fields that differ.
    """
    if not isinstance(base, dict) or not isinstance(base.get("fields"), dict):
        raise CheckpointError(
            f"{source} does not say which base it belongs to; save it again with pospatch.save_adapter"
        )
    wanted, got = base["fields"], describe(model, patch)["fields"]
    if _hash(wanted) != base.get("sha256"):
        raise CheckpointError(f"{source}: the description of its base was changed after it was saved")
    odd = [name for name in sorted({*wanted, *got}) if wanted.get(name) != got.get(name)]
    if odd:
        shown = "; ".join(f"{name} is {got.get(name)!r}, wanted {wanted.get(name)!r}" for name in odd[:3])
        raise CheckpointError(f"{source} was made on {base.get('name')!r} and this base is another one: {shown:.600}")


def _fields(config: Any) -> dict[str, Any]:
    text = config.get_text_config()
    found = {name: getattr(text, name, None) for name in FIELDS}
    plain = {name: value for name, value in found.items() if value is not None}
    return json.loads(json.dumps({"outer_model_type": config.model_type, **plain}))


def _hash(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _name(model: Any) -> str | None:
    """The repository's name; of a folder the last part only, which says nothing about the machine."""
    name = str(getattr(model.config, "_name_or_path", "") or "")
    if os.path.isabs(name) or os.path.exists(name) or name.count("/") > 1:
        name = os.path.basename(os.path.normpath(name))
    return name or None
