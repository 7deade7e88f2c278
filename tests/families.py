"""Tiny models of every family that transformers can build from its config alone: no download, loud weights, one seed.

A config is shrunk by the names of its fields, which are the same across families; what a family needs beyond that stands in
EXCEPTIONS, as data.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto import modeling_auto

LENGTH = 32
VOCABULARY = 99

KINDS = {  # first mapping that has the family names its class
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "composite": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "base": "MODEL_MAPPING_NAMES",
}

SHRINK: dict[str, Any] = {
    **dict.fromkeys(
        (
            "hidden_size", "d_model", "n_embd", "embed_dim", "embedding_size", "word_embed_proj_dim", "hidden_dim", "dim",
            "emb_dim", "encoder_hidden_size", "decoder_hidden_size", "backbone_hidden_size", "embed_size",
            "attention_hidden_size",
            "projection_dim", "output_dim", "text_hidden_size", "conv_dim_out", "decoder_dim", "qa_dim", "context_size",
            "adapter_dim", "pooled_dim", "d_embed", "hidden_sizes_last", "feature_size_unused", "neck_hidden_size",
            "global_hidden_size",
            "output_proj_dim", "projector_hidden_size", "mm_hidden_size", "out_hidden_size", "lru_width", "vision_feature_dim",
            "hidden_channels", "audio_hidden_size", "conv_hidden_size", "mlp_hidden_size", "pooler_hidden_size",
        ), 32,
    ),
    **dict.fromkeys(
        (
            "intermediate_size", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size",
            "shared_expert_intermediate_size", "feed_forward_proj_dim", "mlp_dim", "decoder_intermediate_size",
            "intermediate_dim",
            "ffn_hidden_size", "d_inner", "hidden_dim_ffn", "expert_ffn_hidden_size", "intermediate_size_mlp", "dim_ff",
            "hidden_dim_mlp",
            "shared_intermediate_size", "encoder_intermediate_size", "moe_shared_expert_intermediate_size", "decoder_mlp_size",
            "vq_embed_dim", "mlp_channel_dim", "dense_intermediate_size", "block_ff_dim",
        ), 64,
    ),
    **dict.fromkeys(
        (
            "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_encoder_layers",
            "num_decoder_layers", "num_layers_encoder", "depth", "encoder_num_hidden_layers", "decoder_num_hidden_layers",
            "num_block_layers", "num_encoder_blocks_unused", "n_head_layers", "num_vision_layers", "speech_encoder_layers",
            "num_local_layers", "vision_num_layers", "num_global_layers_unused", "encoder_num_layers",
        ), 2,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
            "attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads", "decoder_num_attention_heads",
            "encoder_num_attention_heads", "swa_num_attention_heads", "attention_num_heads", "num_attention_heads_per_layer",
            "cross_attention_heads", "num_mamba_heads",
        ), 4,
    ),
    **dict.fromkeys(
        (
            "num_key_value_heads", "n_head_kv", "encoder_num_key_value_heads", "decoder_num_key_value_heads", "num_kv_heads",
            "swa_num_key_value_heads", "num_global_key_value_heads",
        ), 2,
    ),
    **dict.fromkeys(
        (
            "max_position_embeddings", "n_positions", "max_target_positions", "max_source_positions", "n_ctx", "max_seq_len",
            "max_sequence_length", "encoder_max_position_embeddings", "decoder_max_position_embeddings",
            "original_max_position_embeddings",
            "max_length_text", "max_seq_length", "max_encoder_position_embeddings",
        ), LENGTH,
    ),
    **dict.fromkeys(("vocab_size", "decoder_vocab_size", "encoder_vocab_size", "src_vocab_size", "tgt_vocab_size",
        "text_vocab_size"), VOCABULARY),
    **dict.fromkeys(("head_dim", "d_kv", "attention_head_dim", "kv_channels", "swa_head_dim", "global_head_dim",
        "attention_head_size"), 16),
    "rotary_dim": 8,
    "sliding_window": 6,
    "local_attention": 6,
    "attention_window_size": 6,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2, "moe_topk": 2, "moe_k": 2, "top_k_experts": 2, "moe_top_k": 2,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "qk_head_dim": 16,
    "image_size": 32, "img_size": 32, "patch_size": 8, "num_frames": 2, "frame_size": 8,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None,
    "mask_token_id": 3, "cls_token_id": 4, "sep_token_id": 5,
    "type_vocab_size": 2,
    "mamba_d_state": 8, "mamba_d_head": 16, "mamba_n_heads": 4, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_num_heads": 4,
    "mamba_head_dim": 16, "mamba_dt_rank": 4, "mamba_n_groups": 1, "n_groups": 1, "mamba_headdim": 16, "n_mamba_heads": 1,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "state_size": 8, "ssm_state_size": 8, "time_step_rank": 4,
    "num_mel_bins": 16, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0,
    "mtp_num_layers": 0, "num_nextn_predict_layers": 0,
}  # fmt: skip

DROPOUT = ("drop", "dropout", "layerdrop")


@dataclass(frozen=True)
class Variant:
    """One class of one family."""

    family: str
    kind: str
    architecture: str

    def __str__(self) -> str:
        return f"{self.family}-{self.kind}"


def variants() -> list[Variant]:
    """Every (family, kind) that transformers names; the base class where a family has no head of these kinds."""
    found = []
    for family in sorted(CONFIG_MAPPING):
        named = {kind: getattr(modeling_auto, mapping).get(family) for kind, mapping in KINDS.items()}
        headed = [kind for kind, name in named.items() if name and kind != "base"]
        for kind in headed or (["base"] if named["base"] else []):
            name = named[kind]
            found.append(Variant(family, kind, name if isinstance(name, str) else name[0]))
    return found


def config_of(family: str) -> Any:
    """The family's config, shrunk."""
    from tests.family_exceptions import EXCEPTIONS

    return shrunk(CONFIG_MAPPING[family], EXCEPTIONS.get(family, {}))


def shrunk(cls: type, exceptions: dict[str, Any]) -> Any:
    """A config of this class with small sizes; sub-configs too. Exceptions go by field, those of a sub-config under its name."""
    fields = _fields(cls)
    subs = getattr(cls, "sub_configs", {})
    values: dict[str, Any] = {}
    for name in fields:
        if name in subs:
            continue
        if name in SHRINK and not (name in ("sliding_window",) and fields[name] is None):
            values[name] = _like(SHRINK[name], fields[name])
        elif any(part in DROPOUT for part in name.split("_")) and isinstance(fields[name], float):
            values[name] = 0.0
    for name, sub in subs.items():
        if name in exceptions and exceptions[name] is None:
            continue
        inner = exceptions.get(name, {})
        actual = sub
        default = fields.get(name)
        if isinstance(default, PreTrainedConfig):
            actual = type(default)
        elif isinstance(default, dict) and default.get("model_type") in CONFIG_MAPPING:
            actual = CONFIG_MAPPING[default["model_type"]]
        inner = dict(inner)
        if "model_type" in inner:
            actual = CONFIG_MAPPING[inner.pop("model_type")]
        known = (
            getattr(actual, "model_type", "") or name in exceptions
        )  # parts without a type are shrunk where asked for
        if known and actual is not PreTrainedConfig and actual.__name__ != "AutoConfig":
            values[name] = shrunk(actual, inner)
    kinds = list(dict.fromkeys(fields.get("layer_types") or []))
    if len(kinds) > 1 and "num_hidden_layers" in values:
        last = "full_attention" if "full_attention" in kinds else kinds[-1]
        values["layer_types"] = [next(kind for kind in kinds if kind != last), last]
    values.update({name: value for name, value in exceptions.items() if name not in subs})
    return cls(**values)


def _fields(cls: type) -> dict[str, Any]:
    try:
        default = cls()
    except Exception:  # noqa: BLE001  some configs need arguments
        default = None
    fields = {
        name: None if p.default is inspect.Parameter.empty else p.default
        for name, p in inspect.signature(cls.__init__).parameters.items()
        if name not in ("self", "kwargs", "args")
    }
    if default is not None:
        fields.update({name: value for name, value in vars(default).items() if not name.startswith("_")})
    return fields


def _like(value: Any, default: Any) -> Any:
    """The small value in the form of the default: a list keeps its length."""
    if isinstance(default, list | tuple) and not isinstance(value, list | tuple):
        return type(default)(value for _ in default)
    return value


def build(variant: Variant, seed: int = 0, attention: str | None = None) -> Any:
    """A tiny model in evaluation mode with loud random weights, the same for the same seed."""
    config = config_of(variant.family)
    module = importlib.import_module("transformers")
    torch.manual_seed(seed)
    if variant.kind == "causal" and hasattr(config, "is_decoder"):
        config.is_decoder = True
    cls = getattr(module, variant.architecture)
    wanted = getattr(cls, "config_class", None)
    if wanted is not None and not isinstance(config, wanted):
        config = next(
            (sub for name in config.sub_configs if isinstance(sub := getattr(config, name, None), wanted)), config
        )
    model = cls(config)
    loud(model, seed)
    return model.eval()


def loud(model: Any, seed: int = 0) -> None:
    """Weights large enough that whatever is dropped shows; tables of positions included."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for _, value in model.named_parameters():
            fixed = not value.requires_grad and bool(value.any())  # tables of sines stay what they are
            if value.dim() > 1 and value.dtype.is_floating_point and not fixed:
                size = 0.25 if value.dim() == 2 else 0.15
                value.copy_(torch.randn(value.shape, generator=generator) * size)


def every() -> Iterator[tuple[Variant, Any]]:
    """All variants with their models; the models of those that cannot be built are the errors."""
    for variant in variants():
        try:
            yield variant, build(variant)
        except Exception as error:  # noqa: BLE001  whatever a family raises is its reason
            yield variant, error
