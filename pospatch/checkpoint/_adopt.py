"""A natively saved patch that plain transformers loaded: recognised by its record, so that it can be inspected and removed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pospatch.checkpoint._record import methods_of
from pospatch.engine._undo import Undo
from pospatch.errors import CheckpointError
from pospatch.methods._base import Rotary

__all__ = ["adopt", "adopted"]


@contextmanager
def adopted(model: Any) -> Iterator[None]:
    """Adopt for the length of a block; a block that raises leaves the model as plain transformers loaded it."""
    back = adopt(model)
    try:
        yield
    except BaseException:
        if back is not None:
            _give_up(model, back)
        raise


def adopt(model: Any) -> Undo | None:
    """Take over a patch that the config records and the native form carries; does nothing elsewhere.

    A resized table is the model's own from then on: the old rows are not in the checkpoint, so there is nothing to go back to.

    Returns:
        The way back to the model as it was loaded, where there was something to adopt.

    Raises:
        CheckpointError: the record cannot be used, or the config says other positions than it; the model is as it was loaded.
    """
    from pospatch.api import KEY

    record = getattr(model.config, "pospatch", None)
    if KEY in vars(model) or not isinstance(record, dict) or not record.get("native"):
        return None
    stack = [method for method in methods_of(record) if not getattr(method, "training_only", False)]
    if not stack or not all(isinstance(method, Rotary) for method in stack):
        return None
    from pospatch.checkpoint._save import arm
    from pospatch.engine._native import base_fields, restore_base
    from pospatch.engine._patch import attach

    loaded, back = base_fields(model), Undo()
    try:
        restore_base(model, record.get("base") or {}, record.get("part"), back)
        vars(model)[KEY] = attach(model, stack, {}, record.get("part"), 0)  # tensors: none
        stands = base_fields(model)
        if odd := [name for name, value in stands.items() if value != loaded.get(name)]:
            raise CheckpointError(
                f"the config says {odd[0]}={loaded.get(odd[0])!r:.300} and its patch record {[m.name for m in stack]} stands for "
                f"{stands[odd[0]]!r:.300}: one of them was edited. The model does what the config says; to "
                "go on from there, del model.config.pospatch"
            )
    except BaseException:
        _give_up(model, back)
        raise
    arm(model)
    return back


def _give_up(model: Any, back: Undo) -> None:
    """Take the patch off again and play the adoption back."""
    from pospatch.api import KEY
    from pospatch.checkpoint._save import disarm

    if (patch := vars(model).pop(KEY, None)) is not None:
        disarm(model)
        patch.detach()
    back.play()
