"""Families that cannot be reached, each with its reason."""

from pospatch.hosts._base import Refusal

__all__ = ["REFUSALS"]

REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        reason="its attention is sparse by indices chosen inside, and under any other attention function it would be dense",
        families=(
            "axk2", "deepseek_v32", "dots3_note_text", "glm5_next_text", "glm_moe_dsa", "hy_v4", "mistral_large4_text",
        ),
    ),
    Refusal(
        reason="it exchanges its attention modules for others by the length of the input",
        families=("big_bird",),
    ),
    Refusal(
        reason="its attention works on (batch, width, length) with mathematics of its own",
        families=("squeezebert",),
    ),
    Refusal(
        reason="its keys are patches merged by a convolution, fewer than its queries, so the two share no axis of positions",
        families=("segformer",),
    ),
    Refusal(
        reason="convolutions inside its attention keep an order that cannot be cleared",
        families=("zaya",),
    ),
    Refusal(
        reason="its attention keeps the queries that it samples for each series, so what one token gets hangs on all others",
        families=("informer",),
    ),
    Refusal(
        reason="it correlates a series with itself shifted in time, in place of attention: there are no logits and no positions",
        families=("autoformer",),
    ),
    Refusal(
        reason="it has no attention: order comes from recurrence",
        families=("falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm"),
    ),
    Refusal(
        reason="it has no attention: order comes from convolutions or Fourier transforms",
        families=(
            "bit", "convnext", "convnextv2", "dac", "dinov3_convnext", "efficientnet", "encodec", "fnet", "focalnet", "hgnet_v2",
            "mobilenet_v1", "mobilenet_v2", "patchtsmixer", "poolformer", "regnet", "resnet", "textnet", "univnet", "uvdoc",
        ),
    ),
)  # fmt: skip
