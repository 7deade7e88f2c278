"""Two-sided encoders."""

from pospatch.hosts._base import Host

__all__ = ["ENCODERS"]

TABLE = ("embeddings.position_embeddings",)
BUFFERS = ("position_ids", "token_type_ids")

ENCODERS: tuple[Host, ...] = (
    Host(
        wiring="bert",
        families=(
            "albert", "bert", "bert-generation", "chinese_clip_text_model", "distilbert", "electra", "ernie", "layoutlm",
            "mobilebert", "roc_bert", "splinter",
        ),
        table=TABLE,
        buffers=BUFFERS,
    ),
    Host(
        wiring="roberta",
        families=(
            "altclip_text_model", "camembert", "clap_text_model", "data2vec-text", "roberta", "roberta-prelayernorm",
            "xlm-roberta", "xlm-roberta-xl", "xmod",
        ),
        table=TABLE,
        offset="padding_idx",
        counts_offset=True,
        buffers=BUFFERS,
        note="positions start at padding_idx + 1 and skip pads",
    ),
    Host(
        wiring="rotary encoder",
        families=(
            "esmc", "eurobert", "gte", "jina_embeddings_v3", "modernbert", "modernbert-decoder", "modernvbert",
            "nomic_bert", "openai_privacy_filter", "ultrabert", "embedding_gemma2_text",
        ),
    ),
    Host(
        wiring="bert, own mathematics",
        families=("megatron-bert", "rembert", "tapas", "visual_bert"),
        table=(*TABLE, "embeddings.visual_position_embeddings"),
        buffers=BUFFERS,
        attention=("attention.self",),
        carrier="attention_mask",
        note="own mathematics: tables and additive biases reach it, rotations do not",
    ),
    Host(
        wiring="roformer",
        families=("roformer",),
        attention=("attention.self",),
        carrier="attention_mask",
        sincos=("encoder.embed_positions",),
        note="own mathematics: frequencies and additive biases reach it, other rotations do not",
    ),
    Host(
        wiring="mpnet",
        families=("mpnet",),
        table=TABLE,
        offset="padding_idx",
        counts_offset=True,
        buffers=BUFFERS,
        attention=("attention.attn",),
        carrier="position_bias",
        silenced=("position_bias",),
        bias=("relative_attention_bias",),
        note="own mathematics: tables and additive biases reach it, rotations do not",
    ),
    Host(
        wiring="flava",
        families=("flava_text_model",),
        table=TABLE,
        buffers=BUFFERS,
        attention=("attention.attention",),
        carrier="attention_mask",
        note="own mathematics: tables and additive biases reach it, rotations do not",
    ),
    Host(
        wiring="table, own mathematics, two-sided",
        families=("deberta", "deberta-v2", "ibert", "luke"),
        table=TABLE,
        buffers=BUFFERS,
        attention=("attention.self",),
        silenced=("rel_embeddings",),
        note="own mathematics that takes no additive mask: tables reach it, biases and rotations do not",
    ),
    Host(
        wiring="xlm",
        families=("xlm", "flaubert"),
        table=("transformer.position_embeddings",),
        buffers=("position_ids",),
        attention=("attentions.*",),
        note="own mathematics with a mask of two dimensions: tables reach it, biases and rotations do not",
    ),
)  # fmt: skip
