"""Causal language models."""

from pospatch.hosts._base import Host

__all__ = ["DECODERS"]

DECODERS: tuple[Host, ...] = (
    Host(
        wiring="llama",
        families=(
            "apertus",
            "arcee",
            "bitnet",
            "exaone4",
            "gemma",
            "gemma2",
            "gemma3_text",
            "glm4_moe",
            "gpt_oss",
            "granite",
            "granitemoe",
            "hunyuan_v1_dense",
            "llama",
            "minimax_m2",
            "ministral",
            "ministral3",
            "mistral",
            "mixtral",
            "nemotron",
            "olmo",
            "olmo2",
            "olmo3",
            "olmoe",
            "persimmon",
            "phi",
            "phi3",
            "phimoe",
            "qwen2",
            "qwen2_moe",
            "qwen3",
            "qwen3_moe",
            "seed_oss",
            "smollm3",
            "stablelm",
            "starcoder2",
            "vaultgemma",
        ),
    ),
    Host(wiring="gpt_neox", families=("gpt_neox",)),
    Host(wiring="gpt2", families=("gpt2", "gpt_bigcode"), table=("wpe",)),
    Host(
        wiring="opt",
        families=("opt", "biogpt"),
        table=("embed_positions",),
        offset=2,
        note="masks take no position_ids, so packed documents are not kept apart",
    ),
)
