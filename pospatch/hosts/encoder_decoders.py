"""Encoder-decoder models."""

from pospatch.hosts._base import Host

__all__ = ["ENCODER_DECODERS"]

PADS = "no position_ids: native left padding under generate is wrong; relative methods do not mind"

ENCODER_DECODERS: tuple[Host, ...] = (
    Host(
        wiring="t5",
        families=("mt5", "pop2piano", "switch_transformers", "t5", "umt5"),
        bias=("relative_attention_bias",),
    ),
    Host(
        wiring="bart",
        families=("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "mbart", "plbart"),
        table=("embed_positions",),
        note=PADS,
    ),
    Host(
        wiring="bart, sinusoidal",
        families=("marian", "pegasus", "pegasus_x"),
        table=("embed_positions",),
        note=f"fixed tables; {PADS}",
    ),
    Host(
        wiring="m2m_100",
        families=("m2m_100", "nllb-moe", "seamless_m4t", "seamless_m4t_v2"),
        table=("embed_positions",),
        note="fixed tables in a buffer: one of ours is added before the first layer instead",
    ),
    Host(wiring="rotary, both stacks", families=("moonshine", "moonshine_streaming", "t5gemma", "t5gemma2")),
    Host(
        wiring="whisper",
        families=("speech_to_text", "whisper"),
        table=("embed_positions",),
        order="convolutions before the first layer of the encoder",
    ),
)
