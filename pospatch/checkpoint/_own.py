"""The tensors of a patch by their names in the model: what it learned, and the host's tables that it made longer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.nn as nn
from torch import Tensor

__all__ = ["own_tensors", "save_own"]


def own_tensors(model: Any) -> dict[str, nn.Parameter]:
    """The patch's tensors by their names in the unwrapped model, as they are without adapters of peft."""
    from pospatch.api import patch_of, unwrap

    patch, target = patch_of(model), unwrap(model)
    made = {id(value) for value in _made(patch.kept.values() if patch is not None else ())}
    return {_plain(target, name): value for name, value in target.named_parameters() if id(value) in made}


def _plain(model: Any, name: str) -> str:
    """A tensor's name without the steps that peft put in where it wraps a module that holds the tensor."""
    if "peft" not in sys.modules:
        return name
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    steps, module = [], model
    for step in name.split("."):
        if not isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            steps.append(step)
        module = getattr(module, step)
    return ".".join(steps)


def _made(kept: Any) -> Iterator[Tensor]:
    for item in kept:
        yield from item.parameters() if isinstance(item, nn.Module) else (item,)


def save_own(model: Any, file: Path) -> list[str]:
    """Write them as safetensors, where there are any; returns their names."""
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous() for name, value in own_tensors(model).items()}
    if tensors:
        save_file(tensors, file, metadata={"format": "pt"})
    return sorted(tensors)
