"""Causal language models."""

from pospatch.hosts._base import Host

__all__ = ["DECODERS"]

DECODERS: tuple[Host, ...] = (
    Host(
        wiring="llama",
        families=tuple(
            "llama mistral mixtral ministral ministral3 qwen2 qwen2_moe qwen3 qwen3_moe gemma gemma2 gemma3_text phi phi3 phimoe "
            "gpt_oss smollm3 olmo olmo2 olmo3 olmoe granite granitemoe starcoder2 stablelm nemotron persimmon apertus arcee "
            "bitnet exaone4 hunyuan_v1_dense seed_oss minimax_m2 glm4_moe vaultgemma".split()
        ),
    ),
    Host(
        wiring="llama, pairs interleaved",
        families=("cohere", "cohere2", "glm", "glm4", "helium", "ernie4_5", "ernie4_5_moe"),
        layout="interleaved",
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
