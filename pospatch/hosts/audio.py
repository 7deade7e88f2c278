"""Speech and sound."""

from pospatch.hosts._base import Host

__all__ = ["AUDIO"]

STEM = "convolutions before the first layer"
BETWEEN = "convolutions before the first layer and inside every layer"

AUDIO: tuple[Host, ...] = (
    Host(
        wiring="wav2vec2",
        families=("data2vec-audio", "hubert", "sew", "unispeech", "unispeech-sat", "wav2vec2"),
        hushed=("pos_conv_embed",),
        order=STEM,
        note="positions come from a convolution, which is silenced where they are cleared",
    ),
    Host(
        wiring="conformer, relative",
        families=("wav2vec2-bert", "wav2vec2-conformer"),
        hushed=("pos_conv_embed", "distance_embedding"),
        silenced=("relative_position_embeddings",),
        order=BETWEEN,
        note="convolutions inside the layers keep an order of their own",
    ),
    Host(
        wiring="parakeet",
        families=("lasr_encoder", "nemotron_asr_streaming_encoder", "parakeet_encoder"),
        silenced=("position_embeddings",),
        order=BETWEEN,
        note="convolutions inside the layers keep an order of their own",
    ),
    Host(
        wiring="ast",
        families=("audio-spectrogram-transformer",),
        table=("embeddings.position_embeddings",),
        added=True,
        order="patches that overlap",
        note="a table with a row for each patch of a spectrogram; methods for grids know bands and frames, at any length",
    ),
    Host(
        wiring="whisper encoder",
        families=(
            "audioflamingo3_encoder", "glmasr_encoder", "qwen2_audio_encoder", "qwen3_asr_encoder",
            "qwen3_omni_moe_audio_encoder", "voxtral_encoder",
        ),
        table=("embed_positions",),
        order=STEM,
    ),
)  # fmt: skip
