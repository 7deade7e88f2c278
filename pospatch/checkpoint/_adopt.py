"""A natively saved patch that plain transformers loaded: recognised by its record, so that it can be inspected and removed."""

from __future__ import annotations

from typing import Any

from pospatch.checkpoint._record import methods_of
from pospatch.methods._base import Rotary

__all__ = ["adopt"]


def adopt(model: Any) -> None:
    """Take over a patch that the config records and the native form carries; does nothing elsewhere.

    A resized table is the model's own from then on: the old rows are not in the checkpoint, so there is nothing to go back to.
    """
    from pospatch.api import KEY

    record = getattr(model.config, "pospatch", None)
    if KEY in vars(model) or not isinstance(record, dict) or not record.get("native"):
        return
    stack = [method for method in methods_of(record) if not getattr(method, "training_only", False)]
    if not stack or not all(isinstance(method, Rotary) for method in stack):
        return
    from pospatch.checkpoint._save import arm
    from pospatch.engine._native import restore_base
    from pospatch.engine._patch import attach

    restore_base(model, record.get("base") or {}, record.get("part"))
    vars(model)[KEY] = attach(model, stack, {}, record.get("part"))
    arm(model)
