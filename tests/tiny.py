"""Tiny, exaggerated models of each wiring, built from their configs: loud weights, grouped heads, windows, softcaps, sinks.

With ordinary tiny weights an engine that drops a softcap or a window passes every comparison; here the gap is large.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf

LENGTH = 32  # trained length of every tiny model
VOCABULARY = 99
_SIZE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
}
_ROTARY = {**_SIZE, "num_key_value_heads": 2, "max_position_embeddings": LENGTH, "pad_token_id": 0}
_BERT = {**_SIZE, "max_position_embeddings": LENGTH, "pad_token_id": 0}


def llama(**changes: Any) -> Any:
    """A llama with some fields of its config changed."""
    return tf.LlamaForCausalLM(tf.LlamaConfig(**{**_ROTARY, **changes}))


def _gemma2() -> Any:
    config = tf.Gemma2Config(
        **_ROTARY,
        head_dim=16,
        query_pre_attn_scalar=7,
        attn_logit_softcapping=1.5,
        final_logit_softcapping=3.0,
        sliding_window=6,
    )
    config._attn_implementation = "eager"
    return tf.Gemma2ForCausalLM(config)


def _gpt_oss() -> Any:
    config = tf.GptOssConfig(
        **{**_ROTARY, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 6},
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    return tf.GptOssForCausalLM(config)


def _gemma3() -> Any:
    return tf.Gemma3ForCausalLM(
        tf.Gemma3TextConfig(
            **_ROTARY,
            head_dim=16,
            query_pre_attn_scalar=7,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention"],
        )
    )


def _neox() -> Any:
    return tf.GPTNeoXForCausalLM(
        tf.GPTNeoXConfig(
            **{**_SIZE, "hidden_size": 64},
            max_position_embeddings=LENGTH,
            pad_token_id=0,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        )
    )


def _gpt2() -> Any:
    return tf.GPT2LMHeadModel(
        tf.GPT2Config(
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=LENGTH,
            vocab_size=VOCABULARY,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
        )
    )


def _opt() -> Any:
    return tf.OPTForCausalLM(
        tf.OPTConfig(
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            vocab_size=VOCABULARY,
            word_embed_proj_dim=32,
            pad_token_id=0,
            dropout=0.0,
        )
    )


def _bert(**changes: Any) -> Any:
    return tf.BertForMaskedLM(
        tf.BertConfig(**{**_BERT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **changes})
    )


def _roberta() -> Any:
    return tf.RobertaForMaskedLM(
        tf.RobertaConfig(
            **{
                **_BERT,
                "max_position_embeddings": LENGTH + 2,
                "pad_token_id": 1,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            }
        )
    )


def _t5() -> Any:
    return tf.T5ForConditionalGeneration(
        tf.T5Config(
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            vocab_size=VOCABULARY,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=2,
            dropout_rate=0.0,
            feed_forward_proj="gelu",  # a ReLU a rounding away from zero flips whole gradients
        )
    )


def _bart() -> Any:
    return tf.BartForConditionalGeneration(
        tf.BartConfig(
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=LENGTH,
            vocab_size=VOCABULARY,
            dropout=0.0,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
        )
    )


HOSTS: dict[str, Callable[[], Any]] = {
    "llama": llama,
    "gpt2": _gpt2,
    "bert": _bert,
    "gpt_neox": _neox,
    "opt": _opt,
    "roberta": _roberta,
    "t5": _t5,
    "bart": _bart,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gpt_oss": _gpt_oss,
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**_ROTARY, sliding_window=6)),
    "granite": lambda: tf.GraniteForCausalLM(
        tf.GraniteConfig(
            **_ROTARY, attention_multiplier=0.7, embedding_multiplier=3.0, residual_multiplier=0.6, logits_scaling=2.0
        )
    ),
    "cohere": lambda: tf.CohereForCausalLM(tf.CohereConfig(**_ROTARY)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**_ROTARY, head_dim=16)),
}
CAUSAL = [name for name in HOSTS if name not in ("bert", "roberta", "t5", "bart")]
SEQ2SEQ = ["t5", "bart"]


def build(name: str, seed: int = 0, attention: str | None = None) -> Any:
    """A tiny model in evaluation mode with loud random weights, the same for the same seed."""
    torch.manual_seed(seed)
    model = spread(HOSTS[name](), seed)
    if attention is not None:
        model.set_attn_implementation(attention)
    return model


def spread(model: Any, seed: int = 0) -> Any:
    """Loud random weights, the same for the same seed; evaluation mode."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter_name, value in model.named_parameters():
            if value.dim() > 1:
                value.normal_(0.0, 0.25, generator=generator)
            elif "sinks" in parameter_name:
                value.normal_(0.0, 1.0, generator=generator)
    return model.eval()


def without(name: str, field: str) -> Callable[[], Any]:
    """Builds the same model with one field of its config switched off: no cap, no window, the usual scaling."""

    def made() -> Any:
        config = HOSTS[name]().config
        usual = {"attention_multiplier": (config.hidden_size // config.num_attention_heads) ** -0.5}
        setattr(config, field, usual.get(field))
        if field == "sliding_window" and getattr(config, "layer_types", None):
            config.layer_types = ["full_attention"] * config.num_hidden_layers
        return spread(type(HOSTS[name]())(config))

    return made


def ids(batch: int = 1, length: int = 20, seed: int = 5) -> torch.Tensor:
    """Random ordinary tokens (no pad, bos, eos)."""
    return torch.randint(4, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(model: Any, tokens: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """Logits of one forward; an encoder-decoder gets the tokens on both sides."""
    if model.config.is_encoder_decoder:
        kwargs.setdefault("decoder_input_ids", tokens)
    return model(input_ids=tokens, **kwargs).logits


def options(method: str, model: Any) -> dict[str, Any]:
    """Options with which a method can be tried on a model, from the registry."""
    from pospatch import registry
    from pospatch.api import patch_of, unwrap
    from pospatch.engine._trial import Trial

    return Trial(unwrap(model), patch_of(model)).example(registry.method_class(method))
