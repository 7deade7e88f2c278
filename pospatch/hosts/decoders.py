"""Causal language models."""

from pospatch.hosts._base import Host

__all__ = ["DECODERS"]

RECURRENT = "recurrent or linear-attention layers"

DECODERS: tuple[Host, ...] = (
    Host(
        wiring="rotary",
        families=(
            "afmoe", "apertus", "arcee", "aria_text", "axk1", "beam", "bitnet", "cohere", "cohere2", "cohere2_moe", "csm",
            "cwm", "dbrx", "deepseek_v2", "deepseek_v3", "diffllama", "doge", "dots1", "emu3_text_model", "ernie4_5",
            "ernie4_5_moe", "exaone4", "exaone_moe", "flex_olmo", "flint", "gemma", "gemma2", "gemma3_text", "gemma3n_text",
            "gemma4_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "gpt_oss", "granite", "granitemoe", "granitemoeshared",
            "helium", "hrm_text", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hyperclovax", "jais2", "laguna", "llama",
            "llama4_text", "longcat_flash", "mellum", "mimo_v2_flash", "minicpm3", "minimax_m2", "ministral",
            "ministral3", "mistral", "mistral4", "mixtral", "mllama_text_model", "nanochat", "nemotron", "olmo",
            "olmo2", "olmo3", "olmoe", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
            "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2", "t5_gemma_module", "vaultgemma", "youtu",
        ),
    ),
    Host(
        wiring="rotary, beside other layers",
        families=(
            "bamba", "falcon_h1", "granitemoehybrid", "jamba", "kimi_linear", "lfm2", "lfm2_moe", "lfm3", "minimax",
            "nemotron_h", "olmo_hybrid", "qwen3_5", "qwen3_5_moe", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next",
            "recurrent_gemma", "zamba", "zamba2",
        ),
        order=RECURRENT,
        note="recurrent, linear or convolutional layers keep an order of their own",
    ),
    Host(wiring="gpt_neox", families=("gpt_neox",)),
    Host(wiring="gpt2", families=("gpt2", "gpt_bigcode"), table=("wpe",)),
    Host(
        wiring="opt",
        families=("opt", "biogpt"),
        table=("embed_positions",),
        note="masks take no position_ids, so packed documents are not kept apart",
    ),
    Host(wiring="ctrl", families=("ctrl",), table=("transformer.pos_encoding",), note="a fixed table, exchanged for one of ours"),
    Host(
        wiring="gptj",
        families=("gptj", "codegen"),
        attention=("attn",),
        carrier="attention_mask",
        sincos=("embed_positions",),
        note="own mathematics: frequencies and additive biases reach it, other rotations do not",
    ),
    Host(
        wiring="gpt_neo",
        families=("gpt_neo",),
        table=("wpe",),
        attention=("attn.attention",),
        carrier="attention_mask",
        opened=("bias",),
        note="own mathematics: additive biases reach it, rotations do not",
    ),
    Host(
        wiring="openai-gpt",
        families=("openai-gpt",),
        table=("positions_embed",),
        attention=("attn",),
        carrier="attention_mask",
        opened=("bias",),
        note="own mathematics: additive biases reach it, rotations do not; no cache",
    ),
    Host(
        wiring="bloom",
        families=("bloom",),
        attention=("self_attention",),
        carrier="attention_mask",
        silenced=("alibi",),
        note="own mathematics: additive biases reach it, rotations do not",
    ),
    Host(
        wiring="falcon",
        families=("falcon",),
        attention=("self_attention",),
        carrier="attention_mask",
        silenced=("alibi",),
        note="own mathematics: frequencies and additive biases reach it, other rotations do not",
    ),
    Host(
        wiring="mpt",
        families=("mpt",),
        attention=("attn",),
        carrier="position_bias",
        silenced=("position_bias",),
        note="own mathematics: additive biases reach it, rotations do not",
    ),
    Host(
        wiring="table, own mathematics",
        families=("xglm", "trocr", "mvp"),
        table=("embed_positions",),
        attention=("self_attn",),
        note="own mathematics that takes a mask of one head only: tables reach it, biases and rotations do not",
    ),
)  # fmt: skip
