"""Loading: the base with its own class, then the recorded patch, then the patch's tensors."""

from __future__ import annotations

import os
from typing import Any

import torch

from pospatch.checkpoint._config import PospatchConfig, register
from pospatch.checkpoint._record import methods_of
from pospatch.checkpoint._save import TENSORS, arm, is_patch_tensor, tables
from pospatch.errors import BadOptionType, CheckpointError

__all__ = ["from_pretrained", "load", "read_tensors"]

STATED = {"config", "rope_parameters", "rope_scaling", "rope_theta"}  # by whoever loads, over what the checkpoint says
HUB = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
FOR_WEIGHTS = (
    "dtype",
    "torch_dtype",
    "quantization_config",
)  # how weights are read, though configs have fields of these names


def from_pretrained(first: Any, second: Any = None, /, *, auto_class: Any = None, **kwargs: Any) -> Any:
    """Load a model that pospatch saved, patched as it was; a model without a patch loads as it is. The scaling of a GGUF, which
    transformers drops, is put back.

        from_pretrained(AutoModelForCausalLM, path, **kwargs)
        from_pretrained(path, auto_class=AutoModelForCausalLM, **kwargs)

    Args:
        first, second: the class and the path (folder or Hub repository), in either order.
        auto_class: `AutoModelForCausalLM` or the like, or a concrete class such as `LlamaForCausalLM`.
        kwargs: as for the class's own `from_pretrained` (dtype, device_map, attn_implementation, revision, token, ...).

    Raises:
        BadOptionType: no class, or no path.
        CheckpointError: the patch record, its version or its tensors cannot be used; or the checkpoint would be misread, as
            `inspect(path)` says.

    Warns:
        CheckpointWarning: it is read as it says, and something near it is wrong or cuts inputs; or a GGUF's scaling was put back.
    """
    from pospatch.checkpoint._adopt import adopt
    from pospatch.checkpoint.doctor import guard
    from pospatch.checkpoint.llama_cpp._import import put_back

    given = [item for item in (first, second, auto_class) if item is not None]
    classes = [item for item in given if hasattr(item, "from_pretrained")]
    paths = [item for item in given if isinstance(item, str | os.PathLike)]
    if len(classes) != 1 or len(paths) != 1 or len(given) != 2:
        raise BadOptionType(f"from_pretrained(AutoModelForCausalLM, path) is wanted, got {given!r}")
    model_class, path = classes[0], paths[0]
    register()
    dropped = None
    if not set(kwargs) & STATED:
        dropped = guard(path, {name: kwargs[name] for name in HUB if name in kwargs}, kwargs.get("gguf_file"))
    if hasattr(model_class, "_model_mapping"):
        model = model_class.from_pretrained(path, **kwargs)
    else:
        model = _concrete(model_class, path, kwargs)
    bare = model[0] if isinstance(model, tuple) else model
    if dropped is not None:
        put_back(bare, dropped)
    adopt(bare)
    return model


def _concrete(model_class: Any, path: Any, kwargs: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    fields = {name: value for name, value in kwargs.items() if name not in FOR_WEIGHTS}
    config, rest = AutoConfig.from_pretrained(path, return_unused_kwargs=True, **fields)
    if not isinstance(config, PospatchConfig):
        return model_class.from_pretrained(path, **kwargs)
    kept = {name: kwargs[name] for name in (*HUB, *FOR_WEIGHTS) if name in kwargs}
    return load(model_class, path, (), config, {**rest, **kept})


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
    from transformers.utils import cached_file

    state, old = model.state_dict(keep_vars=True), tables(model)
    wanted = {name: value for name, value in state.items() if is_patch_tensor(name) or name in old}
    if not wanted and not names:
        return
    found = cached_file(path, TENSORS, _raise_exceptions_for_missing_entries=False, **hub)
    if found is None:
        raise CheckpointError(
            f"{path} names {len(names)} patch tensors and has no {TENSORS}; the checkpoint is incomplete"
        )
    read_tensors(found, wanted, model.base_model_prefix)


def read_tensors(file: str | os.PathLike[str], wanted: dict[str, Any], prefix: str) -> None:
    """Copy the tensors of a safetensors file into `wanted`; names and shapes are compared before any is read.

    prefix: name of the headless model inside one with a head; a file of either fits the other.

    Raises:
        CheckpointError: not a safetensors file, or its names or shapes are not the wanted ones.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(file), framework="pt") as stored:
            names = _matched(list(stored.keys()), set(wanted), prefix)
            for name, own in names.items():
                shape = tuple(stored.get_slice(own).get_shape())
                if shape != tuple(wanted[name].shape):
                    raise CheckpointError(
                        f"{file}: {own} has shape {shape}, the patch wants {tuple(wanted[name].shape)}"
                    )
            with torch.no_grad():
                for name, own in names.items():
                    wanted[name].copy_(stored.get_tensor(own))
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}") from error


def _matched(stored: list[str], wanted: set[str], prefix: str) -> dict[str, str]:
    """The stored name of each wanted one: the same, or with the head's prefix more or less."""
    head = f"{prefix}."
    for rename in (str, lambda name: head + name, lambda name: name.removeprefix(head)):
        names = {rename(name): name for name in stored}
        if set(names) == wanted:
            return names
    missing, unknown = sorted(wanted - set(stored)), sorted(set(stored) - wanted)
    raise CheckpointError(f"{TENSORS} does not fit the patch: missing {missing[:3]}, unknown {unknown[:3]}")
