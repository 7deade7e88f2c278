"""An adapter on a patched model by peft's own `load_adapter` or by the one of transformers: a further one, or the same again.

Both read an adapter's config by its type, and the type that an adapter of a patched model carries is one that they do not have.
What stands in for `load_adapter` looks whether the adapter was trained under the very patch that stands, and then hands them the
same adapter under its real type. One set of the patch's tensors serves all adapters of a model: beside others it must be the
same, and without others it comes with the adapter, as where transformers' Trainer goes on from a checkpoint.
"""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pospatch.checkpoint import _base
from pospatch.checkpoint._load import HUB, differing, file_of, hub_of, read_tensors
from pospatch.checkpoint._own import own_tensors
from pospatch.checkpoint._peft_save import CONFIG, TENSORS, WEIGHTS
from pospatch.checkpoint._record import methods_of
from pospatch.checkpoint.adapter import make_record, read_json
from pospatch.errors import AlreadyPatched, CheckpointError, short

__all__ = ["Loader", "kind_of", "refuse_unpatched", "same_patch"]

PATHS = ("model_id", "peft_model_id")  # peft's name of the argument, and transformers'
ELSEWHERE = "call pospatch.load_peft(base, path) with another base, the adapter brings its own"


class Loader:
    """Stands as the `load_adapter` of one patched model, or of a wrapper of peft around it.

    Raises:
        CheckpointError: the adapter was trained without a patch, on another base, or with other tensors of the patch than the
            adapters beside it.
        AlreadyPatched: it was trained under another patch.
    """

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from pospatch.api import patch_of, unwrap

        owner = self._owner
        read, target = type(owner).load_adapter, unwrap(owner)
        given = inspect.signature(read).bind(owner, *args, **kwargs).arguments
        path = next((given[name] for name in PATHS if given.get(name) is not None), None)
        if path is None or patch_of(target) is None:  # tensors handed over in memory say nothing of a patch
            return read(owner, *args, **kwargs)
        hub = _hub(given)
        content = read_json(path, CONFIG, hub)
        if content.get("pospatch") is None:
            refuse_unpatched(target, content, path)
            return read(owner, *args, **kwargs)
        with _under_its_type(content, _fitting(target, content["pospatch"], path), path, hub) as plain:
            file, own = file_of(path, TENSORS, content["pospatch"], hub), own_tensors(target)
            odd = differing(file, own, target.base_model_prefix)
            if odd and (others := _others(owner, given)):
                raise CheckpointError(
                    f"{path} was trained with other values of {len(odd)} of the patch's own tensors ({odd[0]}), and "
                    f"{sorted(others)} stand on this model with theirs; {ELSEWHERE}"
                )
            result = read(**_at(given, plain))
            read_tensors(file, own, target.base_model_prefix)
        return result


def _others(owner: Any, given: dict[str, Any]) -> set[str]:
    """The adapters beside the one that is loaded."""
    return set(getattr(owner, "peft_config", None) or ()) - {given.get("adapter_name") or "default"}


def _hub(given: dict[str, Any]) -> dict[str, Any]:
    """Where on the Hub, of a call's arguments."""
    named = {**given, **(given.get("adapter_kwargs") or {}), **given.get("kwargs", {})}
    return hub_of({name: value for name, value in named.items() if value is not None})


def _at(given: dict[str, Any], folder: str) -> dict[str, Any]:
    """The same call for a folder on this machine."""
    rest = {name: value for name, value in given.get("kwargs", {}).items() if name not in HUB}
    paths = {name: folder for name in PATHS if name in given}
    gone = {"kwargs", "adapter_kwargs", *HUB}
    return {**{name: value for name, value in given.items() if name not in gone}, **rest, **paths}


def _fitting(target: Any, record: Any, path: Any) -> str:
    """The type of an adapter that was trained under what stands on the model; or raise."""
    kind = kind_of(record, path)
    methods_of(record)
    same_patch(target, record, path, ELSEWHERE)
    return kind


@contextmanager
def _under_its_type(content: dict[str, Any], kind: str, path: Any, hub: dict[str, Any]) -> Iterator[str]:
    """A folder with the same adapter as peft alone would have written it.

    Raises:
        CheckpointError: the adapter has no weights.
    """
    from transformers.utils import cached_file

    with tempfile.TemporaryDirectory() as folder:
        plain = {name: value for name, value in content.items() if name != "pospatch"}
        Path(folder, CONFIG).write_text(json.dumps({**plain, "peft_type": kind}))
        for name in WEIGHTS:
            if found := cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub):
                os.symlink(os.path.abspath(found), Path(folder, name))
        if len(os.listdir(folder)) == 1:
            raise CheckpointError(f"{path} has none of {', '.join(WEIGHTS)}; the adapter is incomplete")
        yield folder


def kind_of(record: Any, path: Any) -> str:
    """The type of peft that an adapter with a record really has.

    Raises:
        CheckpointError: this peft has no such type.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = record.get("peft_type") if isinstance(record, dict) else None
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise CheckpointError(f"{path}: the type of the adapter is {short(kind)}, which this peft does not know")
    return kind


def refuse_unpatched(target: Any, content: dict[str, Any], path: Any) -> None:
    """An adapter without a record on a patched model: right only on the base that it names, where plain peft made it.

    Raises:
        CheckpointError: it names another base.
    """
    if content.get("base_model_name_or_path") != getattr(target, "name_or_path", None) or not target.name_or_path:
        raise CheckpointError(f"{path} was trained without a patch and the base carries one; load it on a bare base")


def same_patch(target: Any, record: dict[str, Any], path: Any, remedy: str) -> None:
    """Compare what stands on a model with what an adapter was trained under.

    Raises:
        AlreadyPatched: other methods, options or part.
        CheckpointError: the same on another base.
    """
    from pospatch.api import patch_of

    stands = make_record(target)
    for name in ("stack", "part"):
        if json.loads(json.dumps(stands.get(name))) != record.get(name):
            raise AlreadyPatched(
                f"{path} was trained under {record.get(name)!r} and the base carries {stands.get(name)!r}; {remedy}"
            )
    _base.check(target, record.get("base"), str(path), patch_of(target))
