"""What a checkpoint that is not trusted may ask for: no more memory than its own weights fill, no file outside its folder.

A checkpoint's config decides how large a model is made before any weight is read, and transformers makes what the weights do not
fill. Here the model is made without memory first and compared with the size of the files that are there.
"""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.models.auto.auto_factory import _get_model_class

from pospatch.errors import CheckpointError, ShapeMismatch

__all__ = ["check_base", "count_numbers", "read_object", "read_shapes"]

LARGEST = 2**24  # bytes of a JSON file that is read: the index of the largest models has a few million
SLACK = 2**22  # numbers; heads that are new and tables of indices


def check_base(model_class: Any, config: Any, path: Any, kwargs: dict[str, Any], hub: dict[str, Any]) -> None:
    """Refuse a base config that asks for a model other or far larger than the weights beside it, or weights that lie elsewhere.

    Raises:
        CheckpointError: before anything of that size is made.
        ShapeMismatch: likewise.
    """
    files = _weights(path, kwargs.get("variant"), hub)
    size = sum(Path(file).stat().st_size for file in files)
    skeleton = _skeleton(model_class, config, str(path))
    if skeleton is None:  # no model of this family is of that class, which transformers says itself
        return
    wanted = sum(value.numel() for value in (*skeleton.parameters(), *skeleton.buffers()))
    if wanted > 2 * size + SLACK:  # two numbers a byte: four bits each
        raise CheckpointError(
            f"{path}: its config describes a model of {wanted} numbers and its weights have {size} bytes; nothing was loaded"
        )
    shapes = {name: shape for file in files for name, shape in read_shapes(file).items()}
    plain = getattr(config, "quantization_config", None) is None and not kwargs.get("ignore_mismatched_sizes")
    for name, value in skeleton.state_dict().items() if plain else ():
        if name in shapes and shapes[name] != tuple(value.shape):
            raise ShapeMismatch(
                f"{path}: {name} has shape {shapes[name]}, the config wants {tuple(value.shape)}; to start what does not fit "
                "anew, as for a head of another size, pass ignore_mismatched_sizes=True"
            )


def _weights(path: Any, variant: str | None, hub: dict[str, Any]) -> list[str]:
    """The files of the base's weights, safetensors only."""
    from transformers.utils.hub import cached_file, cached_files

    kind = "" if variant is None else f".{variant}"
    quiet = {"_raise_exceptions_for_missing_entries": False, **hub}
    whole = cached_file(path, f"model{kind}.safetensors", **quiet)
    if whole is not None:
        return [whole]
    index = cached_file(path, f"model.safetensors.index{kind}.json", **quiet)
    if index is None:
        raise CheckpointError(
            f"{path} has no model{kind}.safetensors and no index of shards; other forms of weights are not read beside a patch"
        )
    try:
        names = set(json.loads(Path(index).read_text())["weight_map"].values())
        bad = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is no index of shards: {error!r:.200}") from error
    if bad:
        raise CheckpointError(f"{index} names a shard {bad[0]!r:.200} that is not in its own folder")
    found = cached_files(path, sorted(names), **quiet)
    if found is None or len(found) != len(names):
        raise CheckpointError(f"{path} names {len(names)} shards and has {len(found or ())}; it is incomplete")
    return found


def _skeleton(model_class: Any, config: Any, path: str) -> Any:
    """The model that `model_class` would load, on no device; None where there is none of this family."""
    mapping = getattr(model_class, "_model_mapping", None)
    if mapping is not None and type(config) not in mapping:
        return None
    chosen = model_class if mapping is None else _get_model_class(config, mapping)
    try:
        with torch.device("meta"):
            return chosen(copy.deepcopy(config))
    except Exception as error:  # whatever a family's constructor says of numbers that do not fit together
        raise CheckpointError(
            f"{path}: its base config describes no model: {type(error).__name__}: {error!s:.300}"
        ) from error


def count_numbers(file: str | None) -> int:
    """Numbers that a safetensors file holds by its header; none where there is no file.

    Raises:
        CheckpointError: not a safetensors file.
    """
    return 0 if file is None else sum(math.prod(shape) for shape in read_shapes(file).values())


def read_shapes(file: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file, without its tensors.

    Raises:
        CheckpointError: not a safetensors file.
    """
    try:
        with safe_open(os.fspath(file), framework="pt") as stored:
            return {name: tuple(stored.get_slice(name).get_shape()) for name in list(stored.keys())}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}") from error


def read_object(file: Path, source: Any) -> dict[str, Any]:
    """A JSON object of a checkpoint that is not trusted.

    Raises:
        CheckpointError: too large, or no JSON object.
    """
    if (size := file.stat().st_size) > LARGEST:
        raise CheckpointError(f"{source}: {file.name} has {size} bytes, which no such file has")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source}: {file.name} is no JSON: {type(error).__name__}: {error!s:.200}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{source}: {file.name} is no JSON object")
    return content
