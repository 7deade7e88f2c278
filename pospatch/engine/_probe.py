"""Small forwards that prove: what each attention sees, that every module is reached, that native positions are gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from pospatch.errors import UnsupportedHost

__all__ = ["forward", "quiet", "tokens"]

LENGTH = 8


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each module's own mode and the random state come back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def tokens(model: Any) -> Tensor:
    """A few distinct ordinary token ids, (1, LENGTH)."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    special = {
        getattr(config, name, None)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
    }
    special |= {item for ids in special if isinstance(ids, list) for item in ids}
    vocabulary = int(getattr(config, "vocab_size", 0) or 0)
    ids = [i for i in range(vocabulary) if i not in special][: 4 * LENGTH : 3][:LENGTH]
    if len(ids) < LENGTH:
        raise UnsupportedHost(
            f"{type(model).__name__} has a vocabulary of {vocabulary}; a probe needs {LENGTH} ordinary tokens"
        )
    return torch.tensor([ids], device=_device(model))


def _device(model: nn.Module) -> torch.device:
    """Where inputs go: the token embedding's device, since a dispatched model lives on several."""
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None  # type: ignore[operator]
    hook = getattr(embedding, "_hf_hook", None)
    if hook is not None and getattr(hook, "execution_device", None) is not None:
        return torch.device(hook.execution_device)
    parameter = next((embedding or model).parameters())
    return torch.device("cpu") if parameter.device.type == "meta" else parameter.device


def forward(model: Any, ids: Tensor, decoder_ids: Tensor | None = None) -> dict[str, Tensor]:
    """Last hidden states of the base model, by name: a task head adds nothing that positions could hide in."""
    base = getattr(model, "base_model", model)
    keywords: dict[str, Any] = {"input_ids": ids, "return_dict": True}
    if getattr(base.config, "is_encoder_decoder", False) and hasattr(base, "decoder"):
        keywords["decoder_input_ids"] = ids if decoder_ids is None else decoder_ids
    if "use_cache" in _parameters(base):
        keywords["use_cache"] = False
    output = base(**keywords)
    names = ("last_hidden_state", "encoder_last_hidden_state")
    return {name: getattr(output, name) for name in names if getattr(output, name, None) is not None}


def _parameters(module: nn.Module) -> Any:
    import inspect

    return inspect.signature(inspect.unwrap(type(module).forward)).parameters
