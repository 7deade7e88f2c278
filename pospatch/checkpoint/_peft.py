"""Loading an adapter of peft with the patch that it was trained under."""

from __future__ import annotations

import json
import os
from typing import Any

from pospatch.checkpoint._load import file_of, hub_of, read_tensors
from pospatch.checkpoint._own import own_tensors
from pospatch.checkpoint._peft_save import CONFIG, TENSORS, arm_adapters, arm_wrapper
from pospatch.checkpoint._record import methods_of
from pospatch.checkpoint.adapter import make_record, put_on, read_json
from pospatch.errors import AlreadyPatched, CheckpointError, short

__all__ = ["load_peft"]


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
        same = content.get("base_model_name_or_path") == getattr(target, "name_or_path", None) != ""
        with adopted(
            target
        ):  # plain peft on plain transformers leaves no record, and is right on the base that it names
            if patch_of(target) is not None and not same:
                raise CheckpointError(
                    f"{path} was trained without a patch and the base carries one; load it on a bare base"
                )
        return PeftModel.from_pretrained(model, path, adapter_name=adapter_name, **kwargs)
    kind = record.get("peft_type") if isinstance(record, dict) else None
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise CheckpointError(f"{path}: the type of the adapter is {short(kind)}, which this peft does not know")
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
            _same_patch(make_record(target), record, path)
            read_tensors(file_of(path, TENSORS, record, hub), own_tensors(target), target.base_model_prefix)
            return False
    put_on(target, record, path, TENSORS, hub)
    return True


def _same_patch(stands: dict[str, Any], record: dict[str, Any], path: Any) -> None:
    for name in ("stack", "part"):
        if json.loads(json.dumps(stands.get(name))) != record.get(name):
            raise AlreadyPatched(
                f"{path} was trained under {record.get(name)!r} and the base carries {stands.get(name)!r}; "
                "call pospatch.remove(model) first, the adapter brings its own"
            )
