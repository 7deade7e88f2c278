"""Tiny causal models and a tokenizer of characters for the tests of the measurements."""

from __future__ import annotations

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

TEXT = "".join(chr(97 + (7 * i * i + 3 * i) % 26) + (" " if i % 5 == 0 else "") for i in range(3000))
COMMON = {"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**COMMON, "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 512}
# Families whose way from hidden state to logits differs: softcap, multiplier, divisor, projection, experts, wrappers.
CAUSAL = {
    "llama": LLAMA,
    "gemma2": {**LLAMA, "head_dim": 8, "final_logit_softcapping": 1.0, "sliding_window": 8},
    "cohere": {**LLAMA, "logit_scale": 0.3},
    "granite": {**LLAMA, "logits_scaling": 7.0},
    "mixtral": {**LLAMA, "num_local_experts": 4},
    "gpt2": {"vocab_size": 260, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gpt_neox": {**COMMON, "intermediate_size": 48, "max_position_embeddings": 512},
    "opt": {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": 16, "max_position_embeddings": 512},
    "bloom": {"vocab_size": 260, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "bart": {
        "vocab_size": 260,
        "d_model": 32,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 48,
    },
}


def tiny(kind: str, **changes):
    """A small loud model: with ordinary weights every logit is near zero and a missing softcap would not show."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, **{**CAUSAL[kind], "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **changes}
    )
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.4)
    return model.eval()


@cache
def characters():
    """One token a character, without merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {letter: index + 3 for index, letter in enumerate(letters)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def own_losses(model, ids):
    """The plain way: all logits at once."""
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")


def text_ids(tokenizer, length):
    return torch.tensor([tokenizer(TEXT, add_special_tokens=False)["input_ids"][:length]])
