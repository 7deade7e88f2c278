"""Loading: the base with its own class, then the recorded patch, then the patch's tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from pospatch.checkpoint._bounds import check_base, count_numbers
from pospatch.checkpoint._config import PospatchConfig, register
from pospatch.checkpoint._record import methods_of
from pospatch.checkpoint._save import TENSORS, arm, is_patch_tensor, tables
from pospatch.errors import BadOptionType, CheckpointError
from pospatch.methods._base import Method

__all__ = ["differing", "file_of", "from_pretrained", "load", "put_stack", "read_tensors"]

STATED = {"config", "rope_parameters", "rope_scaling", "rope_theta"}  # by whoever loads, over what the checkpoint says
FLOATS = ("F64", "F32", "F16", "BF16")
HUB = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
FOR_WEIGHTS = ("dtype", "torch_dtype", "quantization_config")  # not the config's, which has fields of these names


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
        dropped = guard(path, hub_of(kwargs), kwargs.get("gguf_file"))
    if hasattr(model_class, "_model_mapping"):
        model = model_class.from_pretrained(path, **kwargs)
    else:
        model = _concrete(model_class, path, kwargs)
    bare = model[0] if isinstance(model, tuple) else model
    if dropped is not None:
        put_back(bare, dropped)
    adopt(bare)
    return model


def hub_of(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Where on the Hub a file is, of the keyword arguments of a load."""
    return {name: kwargs[name] for name in HUB if name in kwargs}


def _concrete(model_class: Any, path: Any, kwargs: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    fields = {name: value for name, value in kwargs.items() if name not in FOR_WEIGHTS}
    config, rest = AutoConfig.from_pretrained(path, return_unused_kwargs=True, **fields)
    if not isinstance(config, PospatchConfig):
        return model_class.from_pretrained(path, **kwargs)
    kept = {name: kwargs[name] for name in FOR_WEIGHTS if name in kwargs}
    return load(model_class, path, (), config, {**rest, **hub_of(kwargs), **kept})


def load(model_class: Any, path: Any, args: tuple[Any, ...], config: PospatchConfig, kwargs: dict[str, Any]) -> Any:
    """Load the base that `config` carries and put its patch on.

    Raises:
        CheckpointError: the record, the base's config, its weights or the patch's tensors cannot be used.
    """
    record = config.pospatch
    stack = methods_of(record)
    hub = hub_of(kwargs)
    if kwargs.get("state_dict") is None:  # transformers takes the weights from there
        check_base(model_class, config.base, path, kwargs, hub)
    result = model_class.from_pretrained(path, *args, config=config.base, **{"use_safetensors": True, **kwargs})
    model = result[0] if isinstance(result, tuple) else result
    put_stack(model, stack, record, file_of(path, TENSORS, record, hub), _own)
    return result


def put_stack(
    model: Any,
    stack: list[Method],
    record: dict[str, Any],
    file: str | None,
    wanted: Callable[[Any], Mapping[str, Tensor]],
) -> None:
    """Attach what a record names to a bare model and read its tensors; or raise and leave the model as it was.

    file: the tensors, whose size bounds what the record may ask for; None where there are none.
    wanted: the tensors of a patched model that are read.
    """
    from pospatch.api import KEY
    from pospatch.engine._patch import attach

    vars(model)[KEY] = patch = attach(model, stack, {}, record.get("part"), count_numbers(file))
    try:
        read_tensors(file, wanted(model), model.base_model_prefix)
    except BaseException:
        patch.detach()
        del vars(model)[KEY]
        raise
    arm(model)


def file_of(path: Any, name: str, record: dict[str, Any], hub: dict[str, Any]) -> str | None:
    """Where the patch's tensors are; None where the record names none."""
    from transformers.utils import cached_file

    if not record.get("tensors"):
        return None
    found = cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub)
    if found is None:
        raise CheckpointError(
            f"{path} names {len(record['tensors'])} patch tensors and has no {name}; the checkpoint is incomplete"
        )
    return found


def _own(model: Any) -> dict[str, Tensor]:
    """What a whole checkpoint has in the patch's file: its learned tensors, and longer tables of the host's."""
    old = tables(model)
    return {
        name: value for name, value in model.state_dict(keep_vars=True).items() if is_patch_tensor(name) or name in old
    }


def read_tensors(file: str | os.PathLike[str] | None, wanted: Mapping[str, Tensor], prefix: str) -> None:
    """Copy the tensors of a safetensors file into `wanted`; names and shapes are compared before any is read.

    prefix: name of the headless model inside one with a head; a file of either fits the other.

    Raises:
        CheckpointError: not a safetensors file, or its names or shapes are not the wanted ones.
    """
    with torch.no_grad():
        for name, value in _stored(file, wanted, prefix):
            wanted[name].copy_(value)


def differing(file: str | os.PathLike[str] | None, wanted: Mapping[str, Tensor], prefix: str) -> list[str]:
    """The names of tensors that are others in the file than in `wanted`, beyond rounding to the coarser of the two dtypes.

    Raises:
        CheckpointError: as `read_tensors`.
    """
    odd = []
    for name, value in _stored(file, wanted, prefix):
        own = wanted[name].detach().cpu()
        if not (torch.equal(value.to(own.dtype), own) or torch.equal(own.to(value.dtype), value)):
            odd.append(name)
    return odd


def _stored(
    file: str | os.PathLike[str] | None, wanted: Mapping[str, Tensor], prefix: str
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file by the names in `wanted`; all names, shapes and dtypes are compared before the first is read."""
    from safetensors import safe_open

    if file is None:
        if wanted:
            raise CheckpointError(
                f"the record names no tensors and the patch wants {len(wanted)}: {sorted(wanted)[:3]}"
            )
        return
    try:
        with safe_open(os.fspath(file), framework="pt") as stored:
            names = _matched(list(stored.keys()), set(wanted), prefix)
            for name, own in names.items():
                _check_slice(file, own, stored.get_slice(own), wanted[name])
            for name, own in names.items():
                yield name, stored.get_tensor(own)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}") from error


def _check_slice(file: Any, name: str, stored: Any, wanted: Tensor) -> None:
    if (shape := tuple(stored.get_shape())) != tuple(wanted.shape):
        raise CheckpointError(f"{file}: {name} has shape {shape}, the patch wants {tuple(wanted.shape)}")
    if (dtype := stored.get_dtype()) not in FLOATS:
        raise CheckpointError(f"{file}: {name} has dtype {dtype}, the patch wants one of {', '.join(FLOATS)}")


def _matched(stored: list[str], wanted: set[str], prefix: str) -> dict[str, str]:
    """The stored name of each wanted one: the same, or with the head's prefix more or less."""
    head = f"{prefix}."
    for rename in (str, lambda name: head + name, lambda name: name.removeprefix(head)):
        names = {rename(name): name for name in stored}
        if set(names) == wanted:
            return names
    missing, unknown = sorted(wanted - set(stored)), sorted(set(stored) - wanted)
    raise CheckpointError(f"{TENSORS} does not fit the patch: missing {missing[:3]}, unknown {unknown[:3]}")
