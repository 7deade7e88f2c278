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

    Few values of each tensor, so that a large model costs milliseconds; training changes practically all of them. Where a
    tensor's values are not at hand (offloaded, sharded, packed), the whole path that the model came from stands for them.
    """
    digest, origin = hashlib.sha256(), str(getattr(getattr(model, "config", None), "_name_or_path", ""))
    for name, value in _tensors(model):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        values = _values(value.detach())
        digest.update(origin.encode() if values is None else values)
    return digest.hexdigest()


def _tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """What `state_dict` would hold, without its hooks; buffers that are computed may change from one forward to the next."""
    yield from model.named_parameters()
    for path, module in model.named_modules():
        for name, value in module._buffers.items():
            if value is not None and name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}", value


def _values(tensor: Tensor) -> bytes | None:
    """Bytes of values spread evenly over a tensor; None where they cannot be read."""
    if not tensor.numel():
        return b""
    if tensor.is_meta:
        return None
    step = tensor.numel() // _VALUES | 1  # odd, so that the values do not all stand in one column
    places = torch.arange(0, tensor.numel(), step, device=tensor.device)
    try:
        chosen = tensor[torch.unravel_index(places, tensor.shape)]  # view(-1) would copy what is not contiguous
        return chosen.cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
    except (NotImplementedError, RuntimeError):  # packed weights of a quantized model, which cannot be indexed
        return None
