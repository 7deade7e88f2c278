"""Loading an adapter of peft with the patch that it was trained under."""

from __future__ import annotations

import os
from typing import Any

from pospatch.checkpoint._load import file_of, hub_of, read_tensors
from pospatch.checkpoint._own import own_tensors
from pospatch.checkpoint._peft_beside import kind_of, refuse_unpatched, same_patch
from pospatch.checkpoint._peft_save import CONFIG, TENSORS, arm_adapters, arm_wrapper
from pospatch.checkpoint._record import methods_of
from pospatch.checkpoint.adapter import put_on, read_json

__all__ = ["load_peft"]

REMEDY = "call pospatch.remove(model) first, the adapter brings its own"


def load_peft(model: Any, path: str | os.PathLike[str], *, adapter_name: str = "default", **kwargs: Any) -> Any:
    """Load a peft adapter on its base, with the patch that it was trained under; returns the peft model.

    On a bare base the patch is applied; a base with the same patch takes the adapter's tensors of it; any other is refused.
    An adapter that was trained without a patch loads as peft loads it, on a bare base.

    Args:
        model: the base, bare or patched.
        path: folder or Hub repository of the adapter.
        kwargs: as for `PeftModel.from_pretrained` (is_trainable, revision, token, ...).

    Raises:
        CheckpointError: the record, its tensors or the base do not fit; or a patched base and an adapter that knows no patch.
        AlreadyPatched: the base carries another patch than the adapter's.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel

    from pospatch.api import patch_of, unwrap
    from pospatch.checkpoint import adopted

    hub = hub_of(kwargs)
    content, target = read_json(path, CONFIG, hub), unwrap(model)
    record = content.pop("pospatch", None)
    if record is None:
        with adopted(target):
            if patch_of(target) is not None:
                refuse_unpatched(target, content, path)
        return PeftModel.from_pretrained(model, path, adapter_name=adapter_name, **kwargs)
    kind = kind_of(record, path)
    applied = _put_on(target, record, path, hub)
    try:
        config_class: Any = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
        config = config_class.from_peft_type(**{**content, "peft_type": kind})
        loaded = PeftModel.from_pretrained(model, path, adapter_name=adapter_name, config=config, **kwargs)
    except BaseException:
        if applied:
            import pospatch

            pospatch.remove(target)
        raise
    arm_adapters(target)
    arm_wrapper(loaded)
    return loaded


def _put_on(target: Any, record: dict[str, Any], path: Any, hub: dict[str, Any]) -> bool:
    """Apply the record to a bare base; True where it was applied, False where the same patch stands there."""
    from pospatch.api import patch_of
    from pospatch.checkpoint import adopted

    with adopted(target):
        if patch_of(target) is not None:
            methods_of(record)
            same_patch(target, record, path, REMEDY)
            read_tensors(file_of(path, TENSORS, record, hub), own_tensors(target), target.base_model_prefix)
            return False
    put_on(target, record, path, TENSORS, hub)
    return True
