"""Two-sided encoders."""

from pospatch.hosts._base import Host

__all__ = ["ENCODERS"]

ENCODERS: tuple[Host, ...] = (
    Host(
        wiring="bert",
        families=("bert", "electra", "ernie", "albert", "roc_bert"),
        table=("embeddings.position_embeddings",),
        buffers=("position_ids", "token_type_ids"),
    ),
    Host(
        wiring="roberta",
        families=("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm"),
        table=("embeddings.position_embeddings",),
        offset="padding_idx",
        counts_offset=True,
        buffers=("position_ids", "token_type_ids"),
        note="positions start at padding_idx + 1 and skip pads",
    ),
)
