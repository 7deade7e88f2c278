"""gpt2 or opt with a rotary encoding is a gpt_neox with a sequential residual: one fused projection, the same norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pospatch.checkpoint._native_form import Form
from pospatch.checkpoint._placed import parameters, placed
from pospatch.engine._plan import Plan

__all__ = ["TARGET", "form", "hindrance", "starts"]

TARGET = "gpt_neox"
CLASSES = {
    "GPT2LMHeadModel": "GPTNeoXForCausalLM",
    "GPT2Model": "GPTNeoXModel",
    "OPTForCausalLM": "GPTNeoXForCausalLM",
    "OPTModel": "GPTNeoXModel",
}
SHARED = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "use_cache")


def starts(model: Any, plan: Plan) -> bool:
    """True for gpt2 and opt where nothing but one fixed spectrum acts."""
    return model.config.model_type in ("gpt2", "opt") and placed(plan) is not None


def hindrance(model: Any) -> str | None:
    """What of this model gpt_neox has no place for."""
    config = model.config
    if type(model).__name__ not in CLASSES:
        return f"its head has no counterpart there; known are {', '.join(CLASSES)}"
    wanted: dict[str, Any] = {
        "gpt2": {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
        "opt": {
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": False,
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
            "word_embed_proj_dim": config.hidden_size,
        },
    }[config.model_type]
    odd = [name for name, value in wanted.items() if getattr(config, name) != value]
    return f"its config has {odd[0]}={getattr(config, odd[0])!r}" if odd else None


def form(model: Any, plan: Plan) -> Form:
    """The gpt_neox that this model is."""
    import transformers

    found = placed(plan)
    assert found is not None
    config, read = (_config_gpt2, _gpt2) if model.config.model_type == "gpt2" else (_config_opt, _opt)
    target = transformers.GPTNeoXConfig(
        **{name: getattr(model.config, name) for name in SHARED},
        hidden_size=model.config.hidden_size,
        num_hidden_layers=model.config.num_hidden_layers,
        num_attention_heads=model.config.num_attention_heads,
        max_position_embeddings=model.config.max_position_embeddings,
        use_parallel_residual=False,
        attention_bias=True,
        **config(model.config),
    )
    target.rope_parameters = parameters(found, target)
    model_class = getattr(transformers, CLASSES[type(model).__name__])
    target.architectures, target.dtype = [model_class.__name__], next(model.parameters()).dtype
    state = read(model.base_model, target.num_attention_heads)
    headed = model_class is transformers.GPTNeoXForCausalLM
    state = {f"gpt_neox.{name}" if headed else name: value for name, value in state.items()}
    if headed:
        state["lm_head.weight"] = model.lm_head.weight.detach()
    name = f"gpt_neox, rope_parameters of type {target.rope_parameters['rope_type']!r}"
    return Form(name, model_class, target, state)


def _config_gpt2(config: Any) -> dict[str, Any]:
    return {
        "intermediate_size": config.n_inner or 4 * config.n_embd,
        "hidden_act": config.activation_function,
        "layer_norm_eps": config.layer_norm_epsilon,
        "attention_dropout": config.attn_pdrop,
        "hidden_dropout": config.resid_pdrop,
        "initializer_range": config.initializer_range,
    }


def _config_opt(config: Any) -> dict[str, Any]:
    return {
        "intermediate_size": config.ffn_dim,
        "hidden_act": config.activation_function,
        "layer_norm_eps": 1e-5,  # torch's default, which opt keeps
        "attention_dropout": config.attention_dropout,
        "hidden_dropout": config.dropout,
        "initializer_range": config.init_std,
    }


def _fused(parts: list[Tensor], heads: int) -> Tensor:
    """q, k and v of each head side by side, as gpt_neox keeps them; weights (out, in) or biases (out,)."""
    split = [part.detach().unflatten(0, (heads, -1)) for part in parts]
    return torch.stack(split, dim=1).flatten(0, 2).contiguous()


def _pair(state: dict[str, Tensor], name: str, module: Any, transposed: bool = False) -> None:
    weight = module.weight.detach()
    state[f"{name}.weight"] = weight.t().contiguous() if transposed else weight
    state[f"{name}.bias"] = module.bias.detach()


def _gpt2(body: Any, heads: int) -> dict[str, Tensor]:
    state = {"embed_in.weight": body.wte.weight.detach()}
    for number, block in enumerate(body.h):
        at = f"layers.{number}"
        for kind in ("weight", "bias"):
            joined = getattr(block.attn.c_attn, kind)
            parts = joined.t().chunk(3, dim=0) if kind == "weight" else joined.chunk(3)
            state[f"{at}.attention.query_key_value.{kind}"] = _fused(list(parts), heads)
        _pair(state, f"{at}.attention.dense", block.attn.c_proj, transposed=True)
        _pair(state, f"{at}.mlp.dense_h_to_4h", block.mlp.c_fc, transposed=True)
        _pair(state, f"{at}.mlp.dense_4h_to_h", block.mlp.c_proj, transposed=True)
        _pair(state, f"{at}.input_layernorm", block.ln_1)
        _pair(state, f"{at}.post_attention_layernorm", block.ln_2)
    _pair(state, "final_layer_norm", body.ln_f)
    return state


def _opt(body: Any, heads: int) -> dict[str, Tensor]:
    decoder = body.decoder
    state = {"embed_in.weight": decoder.embed_tokens.weight.detach()}
    for number, block in enumerate(decoder.layers):
        at, attention = f"layers.{number}", block.self_attn
        for kind in ("weight", "bias"):
            parts = [getattr(module, kind) for module in (attention.q_proj, attention.k_proj, attention.v_proj)]
            state[f"{at}.attention.query_key_value.{kind}"] = _fused(parts, heads)
        _pair(state, f"{at}.attention.dense", attention.out_proj)
        _pair(state, f"{at}.mlp.dense_h_to_4h", block.fc1)
        _pair(state, f"{at}.mlp.dense_4h_to_h", block.fc2)
        _pair(state, f"{at}.input_layernorm", block.self_attn_layer_norm)
        _pair(state, f"{at}.post_attention_layernorm", block.final_layer_norm)
    _pair(state, "final_layer_norm", decoder.final_layer_norm)
    return state
