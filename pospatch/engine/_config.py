"""The configs of a patched model: copied before they are changed, because two models may share one object."""

from __future__ import annotations

import copy
from typing import Any

import torch.nn as nn

from pospatch.engine._undo import Undo
from pospatch.engine._view import real

__all__ = ["carry_back", "own_configs"]


def own_configs(model: nn.Module, undo: Undo) -> list[tuple[Any, Any]]:
    """Give the model its own copies of all its configs; returns pairs (original, copy)."""
    memo: dict[int, Any] = {}
    pairs: dict[int, tuple[Any, Any]] = {}
    for module in model.modules():
        config = vars(module).get("config")
        if config is None or not hasattr(config, "to_dict"):
            continue
        config = real(config)
        if id(config) not in pairs:
            pairs[id(config)] = (config, copy.deepcopy(config, memo))
        undo.set_attribute(module, "config", pairs[id(config)][1])
    return list(pairs.values())


def carry_back(pairs: list[tuple[Any, Any]], snapshots: list[dict[str, Any]]) -> None:
    """What the user changed in the copies since they were made (an attention switch, use_cache) goes to the originals."""
    for (original, copied), before in zip(pairs, snapshots, strict=True):
        for name, value in vars(copied).items():
            if name not in before or (before[name] is not value and before[name] != value):
                vars(original)[name] = value
