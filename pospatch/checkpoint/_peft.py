"""Adapters of peft that were trained on a patched model: they carry the patch, and peft alone refuses them.

peft ignores what it does not know in an adapter's config, so that an adapter of a patched model would be read on a bare base
without a word. The type that is written here is one that it has not; the type names the remedy.
"""

from __future__ import annotations

import json
import os
import weakref
from pathlib import Path
from typing import Any

import torch

from pospatch.checkpoint._load import HUB
from pospatch.checkpoint._own import save_own
from pospatch.checkpoint._save import TENSORS
from pospatch.checkpoint.adapter import make_record, put_on, read_json, read_own
from pospatch.engine.rotation import FrequencyModule
from pospatch.errors import AlreadyPatched, CheckpointError

__all__ = ["load_peft", "unwatch", "watch"]

CONFIG = "adapter_config.json"
WATCH = "_pospatch_watch"
GUARD = "{kind} on a model patched by pospatch (pip install pospatch, then pospatch.load_peft(base, path))"


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

    hub = {name: kwargs[name] for name in HUB if name in kwargs}
    content, target = read_json(path, CONFIG, hub), unwrap(model)
    record = content.pop("pospatch", None)
    if record is None:
        if patch_of(target) is not None:
            raise CheckpointError(
                f"{path} was trained without a patch and the base carries one; load it on a bare base"
            )
        return PeftModel.from_pretrained(model, path, adapter_name=adapter_name, **kwargs)
    kind = record.get("peft_type") if isinstance(record, dict) else None
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise CheckpointError(f"{path}: the type of the adapter is {kind!r}, which this peft does not know")
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
    return loaded


def _put_on(target: Any, record: dict[str, Any], path: Any, hub: dict[str, Any]) -> bool:
    """Apply the record to a bare base; True where it was applied, False where the same patch stands there."""
    from pospatch.api import patch_of
    from pospatch.checkpoint import adopt

    adopt(target)
    if patch_of(target) is None:
        put_on(target, record, path, hub)
        return True
    stands = make_record(target)
    for name in ("stack", "part"):
        if json.loads(json.dumps(stands.get(name))) != record.get(name):
            raise AlreadyPatched(
                f"{path} was trained under {record.get(name)!r} and the base carries {stands.get(name)!r}; "
                "call pospatch.remove(model) first, the adapter brings its own"
            )
    read_own(target, record, path, hub)
    return False


def arm_adapters(model: Any) -> None:
    """Let every adapter's config on this model write the patch when it is saved."""
    for config in (vars(model).get("peft_config") or {}).values():
        if "save_pretrained" not in vars(config):
            config.save_pretrained = AdapterSaver(model, config)


def disarm_adapters(model: Any) -> None:
    """Give the configs their own way of saving back."""
    for config in (vars(model).get("peft_config") or {}).values():
        vars(config).pop("save_pretrained", None)


def watch(model: Any) -> None:
    """Arm adapters that are added later: peft leaves its configs on the model, and the next forward finds them there."""
    from pospatch.api import patch_of

    patch = patch_of(model)
    if patch is None or patch.found is None:
        return
    ours = (module for module in model.modules() if isinstance(module, FrequencyModule))
    rotary = next(ours, None) or next(iter(patch.found.rotary.values()), None)
    called = rotary if rotary is not None else next(iter(patch.found.attention.values()))
    vars(model)[WATCH] = called.register_forward_pre_hook(Watcher(model))  # every forward reaches it


def unwatch(model: Any) -> None:
    """Stop looking for adapters, and give those that were found their own way of saving back."""
    handle = vars(model).pop(WATCH, None)
    if handle is not None:
        handle.remove()
    disarm_adapters(model)


class Watcher:
    """Forward pre-hook that looks whether peft has put adapters on the model."""

    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)

    def __deepcopy__(self, memo: dict[int, Any]) -> Watcher:
        model = self._model()
        return Watcher(memo.get(id(model), model))

    def __reduce__(self) -> Any:
        return Watcher, (self._model(),)

    def __call__(self, module: Any, args: Any) -> None:
        if not torch.compiler.is_compiling() and (model := self._model()) is not None and "peft_config" in vars(model):
            arm_adapters(model)


class AdapterSaver:
    """Stands as the `save_pretrained` of one adapter's config; knows the model weakly."""

    def __init__(self, model: Any, config: Any) -> None:
        self._model, self._config = weakref.ref(model), weakref.ref(config)

    def __deepcopy__(self, memo: dict[int, Any]) -> AdapterSaver:
        model, config = self._model(), self._config()
        return AdapterSaver(memo.get(id(model), model), memo.get(id(config), config))

    def __reduce__(self) -> Any:
        return AdapterSaver, (self._model(), self._config())

    def __call__(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        model, config, folder = self._model(), self._config(), Path(save_directory)
        assert config is not None  # whoever calls holds it
        record = {**make_record(model), "peft_type": config.peft_type.value}
        record["tensors"] = save_own(model, folder / TENSORS)
        type(config).save_pretrained(config, save_directory, **kwargs)
        content = json.loads((folder / CONFIG).read_text())
        content = {**content, "peft_type": GUARD.format(kind=content["peft_type"]), "pospatch": record}
        draft = folder / f".{CONFIG}"
        draft.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        os.replace(draft, folder / CONFIG)
