"""Old BERT checkpoints with relative keys: transformers 5 drops their distance embeddings, here they are brought in again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pospatch.errors import BadOptionType, CheckpointError

__all__ = ["load_distance_embeddings"]

Model = TypeVar("Model")
ENDING = ".distance_embedding.weight"


def load_distance_embeddings(
    model: Model, source: str | os.PathLike[str] | Mapping[str, Tensor], position_embedding_type: str | None = None
) -> Model:
    """Give a model the relative keys of its old checkpoint: apply `shaw` and copy each layer's distance embedding.

    >>> model = AutoModelForMaskedLM.from_pretrained(folder)                 # doctest: +SKIP
    >>> model = pospatch.load_distance_embeddings(model, folder)             # doctest: +SKIP

    Args:
        model: the model as transformers 5 loads it, without the distance embeddings.
        source: the checkpoint's folder with safetensors files, or its state dict; one kept as pytorch_model.bin is read with
            `torch.load(path, weights_only=True)`.
        position_embedding_type: "relative_key" or "relative_key_query"; None is what the checkpoint's config says.

    Raises:
        CheckpointError: no distance embeddings there, not one for each layer, of different sizes, or no type given and none
            in the config.
    """
    from pospatch.api import apply, remove, unwrap

    target = unwrap(model)
    kind = position_embedding_type or _kind(target, source)
    found = {name.removesuffix(ENDING): value for name, value in _tensors(source).items() if name.endswith(ENDING)}
    rows = {value.shape[0] for value in found.values()}
    if len(rows) != 1 or next(iter(rows)) % 2 == 0:
        raise CheckpointError(
            f"a distance embedding of one odd number of rows in each layer is wanted, got {len(found)} tensors '*{ENDING}' "
            f"with {sorted(rows)} rows"
        )
    apply(target, "shaw", max_distance=rows.pop() // 2, position_embedding_type=kind)
    try:
        _copy(target, found)
    except CheckpointError:
        remove(target)
        raise
    return model


def _copy(model: Any, found: dict[str, Tensor]) -> None:
    wanted = {name: value for name, value in model.named_parameters() if name.endswith(".pospatch.score__table")}
    for name, parameter in wanted.items():
        path = name.removesuffix(".pospatch.score__table")
        held = [key for key in found if _same_module(path, key)]
        if len(held) != 1 or found[held[0]].shape != parameter.shape:
            shapes = [tuple(found[key].shape) for key in held]
            raise CheckpointError(
                f"{path}{ENDING} with shape {tuple(parameter.shape)} is wanted, the checkpoint has {shapes or 'none'}"
            )
        with torch.no_grad():
            parameter.copy_(found.pop(held[0]))
    if found:
        raise CheckpointError(f"the model has no attention module for {sorted(found)[0]}{ENDING}")


def _same_module(path: str, key: str) -> bool:
    """True where two paths name one module, whether or not a task head puts the name of its base model before it."""
    return path == key or path.endswith("." + key) or key.endswith("." + path)


def _kind(model: Any, source: Any) -> str:
    kind = getattr(model.config, "position_embedding_type", None)
    if kind is None and isinstance(source, str | os.PathLike) and (Path(source) / "config.json").is_file():
        kind = json.loads((Path(source) / "config.json").read_text()).get("position_embedding_type")
    if kind not in ("relative_key", "relative_key_query"):
        raise CheckpointError(
            f"the config says position_embedding_type={kind!r}; give position_embedding_type='relative_key' or "
            "'relative_key_query'"
        )
    return kind


def _tensors(source: Any) -> Mapping[str, Tensor]:
    if isinstance(source, Mapping):
        return source
    if not isinstance(source, str | os.PathLike):
        raise BadOptionType(f"a folder or a state dict is wanted, got {type(source).__name__}")
    from safetensors.torch import load_file

    files = sorted(Path(source).glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{source} has no safetensors file; read another form yourself and give the state dict, e.g. "
            "torch.load('pytorch_model.bin', weights_only=True)"
        )
    return {name: value for file in files for name, value in load_file(file).items()}
