"""Speech, spectrograms and series of numbers: other lengths, other methods, and what is refused with its reason."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

import pospatch
from pospatch.engine import _probe
from pospatch.errors import BadOption, SeamChanged, UnsupportedHost
from tests import families, tiny


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(6))


# Whisper --------------------------------------------------------------------------------------------------------------

SOURCE, TARGET = 50, 32


def whisper() -> Any:
    config = tf.WhisperConfig(
        vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, max_source_positions=SOURCE, max_target_positions=TARGET, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = tiny.spread(tf.WhisperForConditionalGeneration(config))
    table = tf.WhisperForConditionalGeneration(
        config
    ).model.encoder.embed_positions.weight  # sines, which are not drawn
    model.model.encoder.embed_positions.weight.data.copy_(table.data)
    return model


def words(model: Any, positions: int, tokens: int = 12) -> Tensor:
    with torch.no_grad():
        return model(
            input_features=noise(1, 80, 2 * SOURCE * 2)[..., : 2 * positions], decoder_input_ids=tiny.ids(1, tokens)
        ).logits


@pytest.mark.parametrize("positions", [20, 90])
def test_whisper_hears_another_length(positions: int, tmp_path: Path) -> None:
    """Its sines are the same at every length, so a window of another one reads what a slice of the table would be."""
    model = whisper()
    native = words(model, SOURCE)
    with pytest.raises(ValueError, match="mel input features"):
        words(model, positions)
    pospatch.apply(model, "sinusoidal", layout="whisper", length=positions, part="encoder")
    table = model.model.encoder.embed_positions.weight
    shared = min(positions, SOURCE)
    torch.testing.assert_close(
        table[:shared], whisper().model.encoder.embed_positions.weight[:shared], rtol=0, atol=1e-4
    )
    assert model.config.max_source_positions == positions
    heard = words(model, positions)
    model.save_pretrained(tmp_path)
    plain = tf.WhisperForConditionalGeneration.from_pretrained(tmp_path).eval()  # no pospatch is needed
    assert torch.equal(words(plain, positions), heard)
    pospatch.remove(model)
    assert model.config.max_source_positions == SOURCE
    assert torch.equal(words(model, SOURCE), native)


@pytest.mark.parametrize("method", ["rope", "alibi", "t5_bias"])
def test_whisper_hears_by_distance_at_the_length_that_its_config_says(method: str) -> None:
    model = pospatch.apply(whisper(), method, part="encoder")
    assert words(model, SOURCE).isfinite().all()
    for module in model.modules():
        if hasattr(module, "config"):
            module.config.max_source_positions = 70
    assert words(model, 70).isfinite().all()


@pytest.mark.parametrize("options", [{"factor": 2}, {"factor": 2, "resize": "tile"}, {"length": 50, "resize": "cubic"}])
def test_whisper_writes_longer_texts(options: dict[str, Any], tmp_path: Path) -> None:
    model = whisper()
    with pytest.raises((IndexError, RuntimeError)):
        words(model, SOURCE, TARGET + 8)
    pospatch.apply(model, "learned", part="decoder", **options)
    written = words(model, SOURCE, TARGET + 8)
    model.save_pretrained(tmp_path)
    plain = tf.WhisperForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert plain.config.max_target_positions == model.config.max_target_positions > TARGET
    assert torch.equal(words(plain, SOURCE, TARGET + 8), written)


def test_whisper_reads_its_rows_itself() -> None:
    with pytest.raises(SeamChanged, match="was not asked for positions"):
        pospatch.apply(whisper(), "learned", factor=2, resize="grid", part="decoder")


def test_both_halves_of_whisper_at_once() -> None:
    model = pospatch.apply(whisper(), "learned", factor=2)
    assert (model.config.max_source_positions, model.config.max_target_positions) == (2 * SOURCE, 2 * TARGET)
    assert words(model, 2 * SOURCE, TARGET + 8).isfinite().all()


# waveforms and spectrograms -------------------------------------------------------------------------------------------


def built(name: str, **changes: Any) -> Any:
    config = families.config_of(name)
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    model = tf.AutoModel.from_config(config).eval()
    families.loud(model)
    return model


@pytest.mark.parametrize("method", ["rope", "alibi", "sinusoidal"])
@pytest.mark.parametrize("family", ["wav2vec2", "hubert"])
def test_waveforms_of_any_length_without_the_convolution(family: str, method: str) -> None:
    """The convolution that places tokens is silent: its weights can be anything."""
    model = built(family)
    native = model(noise(1, 9000)).last_hidden_state
    options = {"length": 512} if method == "sinusoidal" else {}
    pospatch.apply(model, method, **options)
    for length in (4000, 9000):
        heard = model(noise(1, length)).last_hidden_state
        convolution = next(m for n, m in model.named_modules() if n.endswith("pos_conv_embed"))
        kept = [value.data.clone() for value in convolution.parameters()]
        for value in convolution.parameters():
            value.data.normal_()
        assert torch.equal(model(noise(1, length)).last_hidden_state, heard)
        for value, old in zip(convolution.parameters(), kept, strict=True):
            value.data.copy_(old)
    pospatch.remove(model)
    assert torch.equal(model(noise(1, 9000)).last_hidden_state, native)


AST = {"max_length": 40, "num_mel_bins": 32, "patch_size": 8, "time_stride": 4, "frequency_stride": 8}


@pytest.mark.parametrize("method", ["rope_2d", "rope_mixed", "rope", "alibi"])
def test_spectrograms_of_any_length(method: str) -> None:
    """A model made for 40 frames places the patches of 72 as one made for 72 does."""
    name = "audio-spectrogram-transformer"
    model, sound = built(name, **AST), noise(1, 72, 32)
    with pytest.raises(RuntimeError):
        model(sound)
    pospatch.apply(model, method)
    other = pospatch.apply(built(name, **{**AST, "max_length": 72}), method)
    other.load_state_dict({k: v for k, v in model.state_dict().items() if "position_emb" not in k}, strict=False)
    heard = model(sound).last_hidden_state
    assert torch.equal(heard, other(sound).last_hidden_state)
    assert heard.shape[1] == 2 + 4 * 17  # bands and overlapping stretches of frames
    pospatch.remove(model)
    with pytest.raises(RuntimeError):
        model(sound)


def test_a_table_of_spectrogram_patches_keeps_its_rows() -> None:
    with pytest.raises(BadOption, match="another size"):
        pospatch.apply(built("audio-spectrogram-transformer", **AST), "learned", factor=2)


# series ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["time_series_transformer", "patchtst", "timesfm", "timesfm2_5"])
@pytest.mark.parametrize(("method", "options"), [("rope", {"rope_theta": 500.0}), ("alibi", {})])
def test_series_by_distance(family: str, method: str, options: dict[str, Any]) -> None:
    model = built(family)
    given = _probe.inputs(model)

    def seen() -> dict[str, Tensor]:
        with _probe.quiet(model):
            return _probe.forward(model, given)

    native = seen()
    pospatch.apply(model, method, **options)
    now = seen()
    assert any(not torch.allclose(now[key], native[key], atol=1e-3) for key in native)
    pospatch.remove(model)
    assert all(torch.equal(seen()[key], native[key]) for key in native)


@pytest.mark.parametrize(
    ("family", "reason"),
    [("informer", "samples"), ("autoformer", "shifted in time"), ("patchtsmixer", "no attention")],
)
def test_series_that_are_refused(family: str, reason: str) -> None:
    with pytest.raises(UnsupportedHost, match=reason):
        pospatch.apply(built(family), "rope")
