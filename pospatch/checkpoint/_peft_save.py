"""Adapters of peft that are saved from a patched model: they carry the patch, and peft alone refuses them.

peft ignores what it does not know in an adapter's config, so that an adapter of a patched model would be read on a bare base
without a word. The type that is written here is one that it has not; the type names the remedy.

An adapter is put on a patched model by peft, which tells nobody. Two things it cannot do without show it: its wrapper registers
the model as a child module, for which torch has a hook, and whatever is saved goes through the model's `state_dict`, for which
it has another. The first lets the wrapper's folder be replaced as a whole, too; the second holds for adapters without a wrapper
and for those that stood there before the patch.
"""

from __future__ import annotations

import copy
import inspect
import json
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.nn.modules.module import register_module_module_registration_hook

from pospatch.checkpoint._own import save_own
from pospatch.checkpoint._publish import replacing
from pospatch.checkpoint.adapter import make_record

__all__ = ["CONFIG", "TENSORS", "arm_adapters", "arm_wrapper", "is_part", "unwatch", "watch"]

CONFIG = "adapter_config.json"
TENSORS = "adapter_pospatch.safetensors"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
WATCH = "_pospatch_watch"
GUARD = "{kind} on a model patched by pospatch (pip install pospatch, then pospatch.load_peft(base, path))"
_SEEN: list[Any] = []  # the handle of the hook below, once there is a patched model


def watch(model: Any) -> None:
    """Arm the adapters that are put on a patched model later."""
    vars(model)[WATCH] = model.register_state_dict_pre_hook(Watcher(model))
    if not _SEEN:
        _SEEN.append(register_module_module_registration_hook(_registered))


def unwatch(model: Any) -> None:
    """Stop looking for adapters, and give those that were found their own way of saving back."""
    handle = vars(model).pop(WATCH, None)
    if handle is not None:
        handle.remove()
    for config in (vars(model).get("peft_config") or {}).values():
        vars(config).pop("save_pretrained", None)


def arm_adapters(model: Any, configs: dict[str, Any] | None = None) -> None:
    """Let every adapter's config on this model write the patch when it is saved."""
    for config in (configs or vars(model).get("peft_config") or {}).values():
        config.save_pretrained = AdapterSaver(model, config)  # anew: one config may have been given to several models


def arm_wrapper(wrapper: Any) -> None:
    """Let a wrapper of peft replace an older adapter as a whole, and take a further one that was trained under the patch."""
    from pospatch.checkpoint._peft_beside import Loader

    if "peft" in sys.modules and isinstance(wrapper, sys.modules["peft"].PeftModel):
        vars(wrapper)["save_pretrained"] = WrapperSaver(wrapper)
        vars(wrapper)["load_adapter"] = Loader(wrapper)


def _registered(module: Any, name: str, child: Any) -> None:
    """Called by torch for every child that a module gets: a wrapper of peft gets a tuner, or the model itself."""
    if name != "base_model" or child is None or "peft" not in sys.modules:
        return
    from pospatch.api import KEY

    model = child if KEY in vars(child) else child._modules.get("model")
    if model is not None and KEY in vars(model):
        arm_wrapper(module)


class Watcher:
    """Pre-hook of `state_dict` that looks whether peft has put adapters on the model."""

    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)

    def __deepcopy__(self, memo: dict[int, Any]) -> Watcher:
        model = self._model()
        return Watcher(memo.get(id(model), model))

    def __reduce__(self) -> Any:
        return Watcher, (self._model(),)

    def __call__(self, *args: Any) -> None:
        if (model := self._model()) is not None and "peft_config" in vars(model):
            arm_adapters(model)


class WrapperSaver:
    """Stands as the `save_pretrained` of one of peft's wrappers."""

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper

    def __call__(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        from pospatch.api import patch_of, unwrap

        wrapper = self._wrapper
        write, model = type(wrapper).save_pretrained, unwrap(wrapper)
        if patch_of(model) is None:
            write(wrapper, save_directory, *args, **kwargs)
            return
        given = inspect.signature(write).bind(wrapper, save_directory, *args, **kwargs).arguments
        sizes = _vocabularies(wrapper)
        if not given.get("is_main_process", True):
            with tempfile.TemporaryDirectory() as nowhere, _base_unread(wrapper, sizes):
                write(wrapper, nowhere, *args, **kwargs)
            return
        arm_adapters(model, wrapper.peft_config)
        resized = sizes - {getattr(wrapper.config, "vocab_size", None)}
        if resized and given.get("save_embedding_layers", "auto") == "auto":
            kwargs["save_embedding_layers"] = True
        written: set[str] = set()
        with (
            replacing(save_directory, stale=lambda name: CONFIG in written and is_part(name)) as draft,
            _base_unread(wrapper, sizes),
        ):
            if (card := Path(save_directory, "README.md")).is_file():  # which peft adds to
                shutil.copyfile(card, draft / card.name)
            write(wrapper, draft, *args, **kwargs)
            written.update(os.listdir(draft))  # an adapter that is not the default one has a folder of its own


def is_part(name: str) -> bool:
    """Whether a name in a folder is a part of an adapter of peft, and goes when it is replaced."""
    return name == TENSORS or name in WEIGHTS


def _vocabularies(wrapper: Any) -> set[int]:
    """Sizes of the vocabulary in the checkpoints of ours that the adapters name as their bases."""
    bases = {config.base_model_name_or_path for config in wrapper.peft_config.values()}
    return {size for base in bases if (size := _vocabulary(base)) is not None}


def _vocabulary(base: Any) -> int | None:
    """The size of the vocabulary in a checkpoint of ours, whose config.json no class of transformers reads; else None."""
    from transformers.utils import cached_file

    found = base and cached_file(
        base, "config.json", _raise_exceptions_for_missing_entries=False, local_files_only=True
    )
    if not found:
        return None
    record = json.loads(Path(found).read_text()).get("pospatch")
    nested = record.get("base_config") if isinstance(record, dict) else None
    return nested.get("vocab_size") if isinstance(nested, dict) else None


@contextmanager
def _base_unread(wrapper: Any, sizes: set[int]) -> Iterator[None]:
    """Keep peft from reading the base's config.json, where it looks whether the vocabulary was resized: it stops at our guard.

    Without a vocabulary in the wrapper's view of the config it does not look; `sizes`, those of our bases, say it in its place.
    """
    if not sizes:
        yield
        return
    held, own = copy.copy(wrapper.config), vars(wrapper).get("config")
    vars(held)["vocab_size"] = None
    vars(wrapper)["config"] = held
    try:
        yield
    finally:
        del vars(wrapper)["config"]
        if own is not None:
            vars(wrapper)["config"] = own


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
        from pospatch.api import patch_of

        model, config, folder = self._model(), self._config(), Path(save_directory)
        assert config is not None  # whoever calls holds it
        if model is None or patch_of(model) is None:  # it now belongs to another one, or the patch was taken off
            type(config).save_pretrained(config, save_directory, **kwargs)
            return
        record = {**make_record(model), "peft_type": config.peft_type.value}
        record["tensors"] = save_own(model, folder / TENSORS)
        type(config).save_pretrained(config, save_directory, **kwargs)
        content = json.loads((folder / CONFIG).read_text())
        content = {**content, "peft_type": GUARD.format(kind=content["peft_type"]), "pospatch": record}
        draft = folder / f".{CONFIG}"
        draft.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        os.replace(draft, folder / CONFIG)
