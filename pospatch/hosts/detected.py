"""Families without a row: the names under which tables of positions go, to be proven on the model at hand."""

from pospatch.hosts._base import Host

__all__ = ["DETECTED"]

DETECTED = Host(
    wiring="detected",
    families=(),
    table=(
        "wpe",
        "embed_positions",
        "position_embeddings",
        "position_embedding",
        "positions_embed",
        "position_embeds_layer",
        "pos_embed",
        "pos_emb",
        "pos_embedding",
        "positional_embedding",
        "pos_encoding",
    ),
    buffers=("position_ids", "token_type_ids"),
    bias=("relative_attention_bias", "relative_position_bias_table"),
    silenced=("alibi", "position_bias", "rel_embeddings", "relative_position_embeddings"),
)
