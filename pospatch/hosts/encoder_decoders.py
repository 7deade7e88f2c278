"""Encoder-decoder models."""

from pospatch.hosts._base import Host

__all__ = ["ENCODER_DECODERS"]

ENCODER_DECODERS: tuple[Host, ...] = (
    Host(wiring="t5", families=("t5", "mt5", "umt5"), bias=("relative_attention_bias",)),
    Host(
        wiring="bart",
        families=("bart", "mbart", "plbart"),
        table=("embed_positions",),
        offset=2,
        note="no position_ids: native left padding under generate is wrong; relative methods do not mind",
    ),
)
