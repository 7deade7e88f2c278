"""The tensors of a patch by their names in the model: what it learned, and the host's tables that it made longer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.nn as nn
from torch import Tensor

__all__ = ["own_tensors", "save_own"]


def own_tensors(model: Any) -> dict[str, nn.Parameter]:
    """The patch's tensors by their names in the unwrapped model."""
    from pospatch.api import patch_of, unwrap

    patch = patch_of(model)
    made = {id(value) for value in _made(patch.kept.values() if patch is not None else ())}
    return {name: value for name, value in unwrap(model).named_parameters() if id(value) in made}


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
