"""A llama some of whose layers have no positions is a smollm3: the same weights under the same names."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch

from pospatch.checkpoint._native_form import Form
from pospatch.checkpoint._save import is_patch_tensor
from pospatch.engine._plan import Plan
from pospatch.methods._base import Method, Nothing, Rotary

__all__ = ["TARGET", "form", "hindrance", "starts"]

TARGET = "smollm3"
CLASSES = {
    "LlamaForCausalLM": "SmolLM3ForCausalLM",
    "LlamaModel": "SmolLM3Model",
    "LlamaForSequenceClassification": "SmolLM3ForSequenceClassification",
    "LlamaForTokenClassification": "SmolLM3ForTokenClassification",
    "LlamaForQuestionAnswering": "SmolLM3ForQuestionAnswering",
}
SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "attention_bias",
    "attention_dropout",
    "mlp_bias",
    "tie_word_embeddings",
    "id2label",
    "label2id",
)


def starts(model: Any, plan: Plan) -> bool:
    """True for a llama where each layer has its rotary encoding or none."""
    return model.config.model_type == "llama" and _layers(plan) is not None


def hindrance(model: Any) -> str | None:
    """What of this model smollm3 has no place for."""
    if type(model).__name__ not in CLASSES:
        return f"its head has no counterpart there; known are {', '.join(CLASSES)}"
    config = model.config
    if config.head_dim != config.hidden_size // config.num_attention_heads:
        return f"its head_dim={config.head_dim} is not hidden_size / num_attention_heads"
    return None


def _layers(plan: Plan) -> list[bool] | None:
    """For each layer whether it has the host's own rotary encoding; None where anything else acts."""
    if len(plan.stack) != 1:
        return None
    method, found = plan.stack[0], []
    for geometry in plan.base.values():
        if geometry.rotation is None:
            return None
        if isinstance(method, Nothing):
            found.append(geometry.layer not in method.chosen(geometry.layers))
        elif _fixed(method):
            inv_freq, amplitude = method.frequencies(geometry)
            own = (
                torch.equal(inv_freq.cpu(), geometry.rotation.inv_freq)
                and amplitude == geometry.rotation.attention_factor
            )
            if method.weights(geometry) or not (own or not bool(inv_freq.any())):
                return None
            found.append(own)
        else:
            return None
    return found


def _fixed(method: Method) -> TypeGuard[Rotary]:
    """True where the frequencies of each layer say everything."""
    whole = isinstance(method, Rotary) and not method.dynamic and method.layers in (None, "all")
    return whole and type(method).rotate is Rotary.rotate  # type: ignore[attr-defined]


def form(model: Any, plan: Plan) -> Form:
    """The smollm3 that this model is."""
    import transformers

    rotates = _layers(plan)
    assert rotates is not None
    model_class = getattr(transformers, CLASSES[type(model).__name__])
    known = {name: getattr(model.config, name) for name in SHARED}
    config = transformers.SmolLM3Config(**known, no_rope_layers=[int(turns) for turns in rotates])
    config.rope_parameters = dict(model.config.rope_parameters)
    config.architectures, config.dtype = [model_class.__name__], next(model.parameters()).dtype
    state = {name: value for name, value in model.state_dict().items() if not is_patch_tensor(name)}
    return Form("smollm3, no_rope_layers", model_class, config, state)
