"""What tells the weights of two models apart whose folders have the same name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["fingerprint"]

_VALUES = 64  # of each tensor


def fingerprint(model: Any) -> str:
    """SHA-256 over the name, shape and dtype of every tensor that a checkpoint of the model holds, and some of its values.

    Few values of each tensor, so that a large model costs milliseconds; training changes practically all of them.
    """
    digest = hashlib.sha256()
    for name, value in _tensors(model):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(_values(value.detach()))
    return digest.hexdigest()


def _tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """What `state_dict` would hold, without its hooks; buffers that are computed may change from one forward to the next."""
    yield from model.named_parameters()
    for path, module in model.named_modules():
        for name, value in module._buffers.items():
            if value is not None and name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}", value


def _values(tensor: Tensor) -> bytes:
    """Bytes of values spread evenly over a tensor; none where there are none to read."""
    if tensor.is_meta or not tensor.numel():
        return b""
    step = tensor.numel() // _VALUES | 1  # odd, so that the values do not all stand in one column
    places = torch.arange(0, tensor.numel(), step, device=tensor.device)
    try:
        chosen = tensor[torch.unravel_index(places, tensor.shape)]  # view(-1) would copy what is not contiguous
        return chosen.cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
    except (NotImplementedError, RuntimeError):  # packed weights of a quantized model, which cannot be indexed
        return b""
