"""bert or roberta with a rotary encoding is a roformer: pairs side by side, and the angles' sines and cosines as a table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pospatch.checkpoint._native_form import Form
from pospatch.checkpoint._placed import Placed, placed
from pospatch.checkpoint._save import is_patch_tensor
from pospatch.engine._plan import Plan

__all__ = ["TARGET", "form", "hindrance", "starts"]

TARGET = "roformer"
FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert")
HEADS = ("ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering")
SHARED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "id2label",
    "label2id",
    "classifier_dropout",
)
RENAMED = {  # roberta's head by roformer's names
    "lm_head.dense.": "cls.predictions.transform.dense.",
    "lm_head.layer_norm.": "cls.predictions.transform.LayerNorm.",
    "lm_head.decoder.": "cls.predictions.decoder.",
    "lm_head.bias": "cls.predictions.bias",
}


def starts(model: Any, plan: Plan) -> bool:
    """True for the bert wiring where nothing but one fixed spectrum acts."""
    return model.config.model_type in FAMILIES and placed(plan) is not None


def hindrance(model: Any) -> str | None:
    """What of this model roformer has no place for."""
    if not type(model).__name__.endswith(HEADS):
        return f"roformer has no pooler and another classification head; what can be exported is {', '.join(HEADS)}"
    if model.config.is_decoder or model.config.add_cross_attention:
        return "as a decoder"
    return None


def form(model: Any, plan: Plan) -> Form:
    """The roformer that this model is."""
    import transformers

    found = placed(plan)
    assert found is not None
    prefix = model.base_model_prefix
    kind = next(head for head in HEADS if type(model).__name__.endswith(head))
    model_class = getattr(transformers, f"RoFormer{kind}")
    rows = _rows(model, plan)
    known = {name: getattr(model.config, name) for name in SHARED if hasattr(model.config, name)}
    config = transformers.RoFormerConfig(**known, max_position_embeddings=rows, rotary_value=False)
    config.architectures, config.dtype = [model_class.__name__], next(model.parameters()).dtype
    order = _side_by_side(found[1].head_dim, found[2].shape[-1])
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if is_patch_tensor(name) or "position_embeddings" in name or name.endswith(("position_ids", "token_type_ids")):
            continue
        if ".attention.self.query." in name or ".attention.self.key." in name:
            value = value.unflatten(0, (config.num_attention_heads, -1))[:, order].flatten(0, 1).contiguous()
        state[_renamed(name, prefix)] = value
    state["roformer.encoder.embed_positions.weight"] = _angles(found, rows, next(model.parameters()).dtype)
    note = f"reads {rows} tokens: roformer keeps its angles in a table, the rotary encoding itself has no limit"
    return Form("roformer, angles in its table", model_class, config, state, [note])


def _rows(model: Any, plan: Plan) -> int:
    offset = plan.sites.tables[0].offset if plan.sites.host.counts_offset and plan.sites.tables else 0
    return int(model.config.max_position_embeddings) - offset


def _renamed(name: str, prefix: str) -> str:
    for old, new in RENAMED.items():
        if name.startswith(old):
            return name.replace(old, new, 1)
    return f"roformer.{name.removeprefix(prefix + '.')}" if name.startswith(f"{prefix}.") else name


def _side_by_side(head_dim: int, half: int) -> Tensor:
    """Dimensions i and i + half become 2i and 2i + 1; those that do not turn stay behind them."""
    turning = torch.stack((torch.arange(half), torch.arange(half) + half), dim=1).flatten()
    return torch.cat((turning, torch.arange(2 * half, head_dim)))


def _angles(found: Placed, rows: int, dtype: torch.dtype) -> Tensor:
    """Row n: the sines of all pairs at position n, then the cosines."""
    _, geometry, inv_freq, amplitude = found
    angles = torch.arange(rows).float()[:, None] * inv_freq.cpu().float()
    sines, cosines = angles.sin() * amplitude, angles.cos() * amplitude
    still = geometry.head_dim // 2 - inv_freq.shape[-1]
    sines = torch.cat((sines, torch.zeros(rows, still)), dim=1)
    cosines = torch.cat((cosines, torch.ones(rows, still)), dim=1)
    return torch.cat((sines, cosines), dim=1).to(dtype)
