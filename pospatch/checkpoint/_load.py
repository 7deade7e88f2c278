"""Loading: the base with its own class, then the recorded patch, then the patch's tensors."""

from __future__ import annotations

import os
from typing import Any

import torch

from pospatch.checkpoint._config import PospatchConfig, register
from pospatch.checkpoint._record import methods_of
from pospatch.checkpoint._save import TENSORS, arm, is_patch_tensor
from pospatch.errors import BadOptionType, CheckpointError

__all__ = ["from_pretrained", "load"]

HUB = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def from_pretrained(auto_class: Any, path: str | os.PathLike[str] | None = None, **kwargs: Any) -> Any:
    """Load a model that pospatch saved, patched as it was; a model without a patch loads as it is.

    Args:
        auto_class: `AutoModelForCausalLM` or the like, or a concrete class such as `LlamaForCausalLM`.
        path: folder or Hub repository.
        kwargs: as for the class's own `from_pretrained` (dtype, device_map, attn_implementation, revision, token, ...).

    Raises:
        CheckpointError: the patch record, its version or its tensors cannot be used.
    """
    from pospatch.checkpoint._adopt import adopt

    if isinstance(auto_class, str | os.PathLike) and path is not None:
        auto_class, path = path, auto_class
    if not hasattr(auto_class, "from_pretrained") or path is None:
        raise BadOptionType(f"from_pretrained(AutoModelForCausalLM, path) is wanted, got ({auto_class!r}, {path!r})")
    register()
    if hasattr(auto_class, "_model_mapping"):
        model = auto_class.from_pretrained(path, **kwargs)
    else:
        model = _concrete(auto_class, path, kwargs)
    adopt(model[0] if isinstance(model, tuple) else model)
    return model


def _concrete(model_class: Any, path: Any, kwargs: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    hub = {name: kwargs[name] for name in HUB if name in kwargs}
    config = AutoConfig.from_pretrained(path, **hub)
    if isinstance(config, PospatchConfig):
        return load(model_class, path, (), config, kwargs)
    return model_class.from_pretrained(path, **kwargs)


def load(model_class: Any, path: Any, args: tuple[Any, ...], config: PospatchConfig, kwargs: dict[str, Any]) -> Any:
    """Load the base that `config` carries and put its patch on."""
    from pospatch.api import KEY
    from pospatch.engine._patch import attach

    record = config.pospatch
    stack = methods_of(record)
    hub = {name: kwargs[name] for name in HUB if name in kwargs}
    result = model_class.from_pretrained(path, *args, config=config.base, **kwargs)
    model = result[0] if isinstance(result, tuple) else result
    model.__dict__[KEY] = attach(model, stack, {}, record.get("part"))
    arm(model)
    _load_tensors(model, path, record.get("tensors") or [], hub)
    return result


def _load_tensors(model: Any, path: Any, names: list[str], hub: dict[str, Any]) -> None:
    """Copy the patch's learned tensors in; every one must be there, with its shape."""
    from safetensors.torch import load_file
    from transformers.utils import cached_file

    wanted = {name: value for name, value in model.state_dict(keep_vars=True).items() if is_patch_tensor(name)}
    if not wanted and not names:
        return
    found = cached_file(path, TENSORS, _raise_exceptions_for_missing_entries=False, **hub)
    if found is None:
        raise CheckpointError(
            f"{path} names {len(names)} patch tensors and has no {TENSORS}; the checkpoint is incomplete"
        )
    stored = load_file(found)
    missing, unknown = sorted(set(wanted) - set(stored)), sorted(set(stored) - set(wanted))
    if missing or unknown:
        raise CheckpointError(f"{TENSORS} does not fit the patch: missing {missing[:3]}, unknown {unknown[:3]}")
    for name, value in stored.items():
        if value.shape != wanted[name].shape:
            raise CheckpointError(
                f"{TENSORS}: {name} has shape {tuple(value.shape)}, the patch wants {tuple(wanted[name].shape)}"
            )
        with torch.no_grad():
            wanted[name].copy_(value)
