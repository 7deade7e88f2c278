"""A patch alone, without its base: kilobytes, and refused on a base that it was not made on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pospatch.checkpoint import _base
from pospatch.checkpoint._bounds import read_object
from pospatch.checkpoint._load import HUB, file_of, put_stack
from pospatch.checkpoint._own import own_tensors, save_own
from pospatch.checkpoint._publish import replacing
from pospatch.checkpoint._record import VERSION, methods_of
from pospatch.errors import AlreadyPatched, BadOptionType, CheckpointError, NotPatched

__all__ = ["RECORD", "load_adapter", "make_record", "put_on", "read_json", "save_adapter"]

RECORD = "pospatch_adapter.json"
TENSORS = "pospatch_adapter.safetensors"  # not the name in a whole checkpoint, so that both can share a folder


def save_adapter(model: Any, path: str | os.PathLike[str]) -> None:
    """Write the patch with its trained tensors, the base's name and what of its config the patch depends on.

    Weights of the base that were trained meanwhile are not in it; `model.save_pretrained` writes them, a LoRA beside it too.

    Raises:
        NotPatched: the model carries no patch.
    """
    from pospatch.api import unwrap

    target = unwrap(model)
    record = make_record(target)
    with replacing(path, stale=lambda name: name == TENSORS) as draft:
        record["tensors"] = save_own(target, draft / TENSORS)
        (draft / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def load_adapter(model: Any, path: str | os.PathLike[str], **hub: Any) -> Any:
    """Put a saved patch on its base, in place; returns the same object.

    Args:
        model: the unpatched base that the patch was made on.
        path: folder or Hub repository.
        hub: revision, token, cache_dir, subfolder, force_download, local_files_only.

    Raises:
        CheckpointError: the record, its tensors or the base do not fit; the model is left as it was.
        AlreadyPatched: the model carries a patch.
    """
    from pospatch.api import unwrap

    if unknown := sorted(set(hub) - set(HUB)):
        raise BadOptionType(f"load_adapter: unknown option {unknown[0]!r}; valid: {', '.join(HUB)}")
    put_on(unwrap(model), read_json(path, RECORD, hub), path, TENSORS, hub)
    return model


def make_record(target: Any) -> dict[str, Any]:
    """The record of what stands on a model, with its base.

    Raises:
        NotPatched: nothing stands on it.
    """
    import pospatch
    from pospatch.api import patch_of
    from pospatch.checkpoint import adopt

    adopt(target)
    patch = patch_of(target)
    if patch is None:
        raise NotPatched(
            f"{type(target).__name__} carries no patch, so there is none to save; see pospatch.inspect(model)"
        )
    return {
        "version": VERSION,
        "pospatch": pospatch.__version__,
        "stack": [{"method": method.name, **method.options()} for method in patch.stack],
        **({} if patch.part is None else {"part": patch.part}),
        "base": _base.describe(target, patch),
    }


def put_on(target: Any, record: dict[str, Any], path: Any, file: str, hub: dict[str, Any]) -> None:
    """Apply a record to its bare base and read its tensors; the base is left as it was where anything does not fit."""
    from pospatch.api import patch_of, refuse_skeleton
    from pospatch.checkpoint import adopted

    stack = methods_of(record)
    with adopted(target):
        if patch_of(target) is not None:
            raise AlreadyPatched(f"{type(target).__name__} carries a patch already; call pospatch.remove(model) first")
    _base.check(target, record.get("base"), str(path))
    refuse_skeleton(target)
    put_stack(target, stack, record, file_of(path, file, record, hub), own_tensors)


def read_json(path: Any, name: str, hub: dict[str, Any]) -> dict[str, Any]:
    """A small JSON file of a folder or repository.

    Raises:
        CheckpointError: it is not there, too large, or no JSON object.
    """
    from transformers.utils import cached_file

    found = cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub)
    if found is None:
        raise CheckpointError(f"{path} has no {name}: no patch was saved there")
    return read_object(Path(found), path)
