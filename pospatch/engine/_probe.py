"""Small forwards that prove: what each attention sees, that every module is reached, that native positions are gone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from pospatch.engine._calls import parameters
from pospatch.errors import UnsupportedHost

__all__ = ["Cut", "cut_of", "device_of", "forward", "grid_of", "inputs", "quiet", "reads_text", "tokens"]

LENGTH = 8
OUTPUTS = ("last_hidden_state", "encoder_last_hidden_state")


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each module's own mode and the random state come back."""
    training = [module for module in model.modules() if module.training]
    state = torch.get_rng_state()
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        torch.set_rng_state(state)
        for module in training:
            module.training = True


def tokens(model: Any) -> Tensor:
    """A few distinct ordinary token ids, (1, LENGTH)."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    named = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "decoder_start")]
    special = {item for ids in named for item in (ids if isinstance(ids, list | tuple) else [ids])}
    embedding = _embedding(model)
    rows = getattr(embedding, "num_embeddings", 0)
    vocabulary = int(getattr(config, "vocab_size", 0) or rows or 0)
    ids = [i for i in range(vocabulary) if i not in special][: 4 * LENGTH : 3][:LENGTH]
    if len(ids) < LENGTH:
        raise UnsupportedHost(
            f"{type(model).__name__} has a vocabulary of {vocabulary}; a probe needs {LENGTH} ordinary tokens"
        )
    return torch.tensor([ids], device=device_of(model))


def _embedding(model: Any) -> Any:
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError, ValueError, TypeError):
        return None


def device_of(model: nn.Module) -> torch.device:
    """Where inputs go: the token embedding's device, since a dispatched model lives on several."""
    embedding = _embedding(model)
    hook = getattr(embedding, "_hf_hook", None)
    if hook is not None and getattr(hook, "execution_device", None) is not None:
        return torch.device(hook.execution_device)
    parameter = next((embedding if isinstance(embedding, nn.Module) else model).parameters(), None)
    if parameter is None or parameter.device.type == "meta":
        return torch.device("cpu")
    return parameter.device


def inputs(model: Any) -> dict[str, Tensor]:
    """Inputs that the model's own forward takes: tokens, or the smallest image or sound of a shape that runs.

    Raises:
        UnsupportedHost: none of the usual shapes runs; with what the model said to the last one.
    """
    base = _base(model)
    name = _main_input(model)
    if "grid_thw" in parameters(base):
        return _packed_patches(base)
    if name == "input_ids":
        return {"input_ids": tokens(model)}
    if "timesteps" in parameters(base) and hasattr(base.config, "act_dim"):
        return _trajectory(base)
    if name == "past_values":
        return _series(base)
    example = next(iter(base.parameters()))
    dtype = example.dtype if example.dtype.is_floating_point else torch.float32
    complaint: Exception | None = None
    for shape in _shapes(base, name):
        generator = torch.Generator().manual_seed(0)
        value = torch.randn(shape, generator=generator).to(device=device_of(base), dtype=dtype)
        try:
            with quiet(base):
                forward(model, {name: value})
        except Exception as error:  # noqa: BLE001  a wrong shape shows as any error; the last one is told
            complaint = error
        else:
            return {name: value}
    raise UnsupportedHost(
        f"{type(model).__name__} takes {name!r} and no probe input was accepted; it said {str(complaint)[:200]!r}"
    ) from complaint


def _packed_patches(base: Any) -> dict[str, Tensor]:
    """One image of 4 by 4 patches in the form of the towers that read patches of many images as one sequence."""
    config = base.config
    channels = getattr(config, "in_channels", None) or getattr(config, "num_channels", None) or 3
    size = int(channels) * int(getattr(config, "temporal_patch_size", None) or 1) * _pair(config.patch_size)[0] ** 2
    example = next(iter(base.parameters()))
    patches = torch.randn((16, size), generator=torch.Generator().manual_seed(0)).to(example.device, example.dtype)
    first = parameters(base)[0]
    return {first: patches, "grid_thw": torch.tensor([[1, 4, 4]], device=example.device)}


def _trajectory(base: Any) -> dict[str, Tensor]:
    """A short trajectory: returns to go, states and actions, a time step each."""
    example, generator = next(base.parameters()), torch.Generator().manual_seed(0)
    sizes = {"states": base.config.state_dim, "actions": base.config.act_dim, "returns_to_go": 1}
    steps = torch.arange(LENGTH, device=example.device)[None]
    drawn = {name: torch.randn(1, LENGTH, size, generator=generator).to(example) for name, size in sizes.items()}
    return {**drawn, "timesteps": steps, "attention_mask": torch.ones_like(steps)}


def _series(base: Any) -> dict[str, Tensor]:
    """A short series of values, with all that the model's forward must be told about its steps."""
    config, generator, taken = base.config, torch.Generator().manual_seed(0), parameters(base)
    example = next(base.parameters())
    context = int(getattr(config, "context_length", 0) or 4 * LENGTH)
    past = context + max(getattr(config, "lags_sequence", None) or [0])
    ahead = int(getattr(config, "prediction_length", None) or 0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(example)

    if "past_values_padding" in taken:
        values = {"past_values": drawn(1, past), "past_values_padding": torch.zeros(1, past, device=example.device)}
        return (
            {**values, "freq": torch.zeros(1, 1, dtype=torch.long, device=example.device)}
            if "freq" in taken
            else values
        )
    channels = int(getattr(config, "num_input_channels", None) or getattr(config, "input_size", None) or 1)
    several = (channels,) if hasattr(config, "num_input_channels") or channels > 1 else ()
    values = {"past_values": drawn(1, past, *several)}
    if "past_time_features" not in taken:
        return values
    features = int(config.num_time_features)
    values |= {
        "past_time_features": drawn(1, past, features),
        "past_observed_mask": torch.ones_like(values["past_values"]),
    }
    values |= {"future_values": drawn(1, ahead, *several), "future_time_features": drawn(1, ahead, features)}
    still = {"static_categorical_features": int(config.num_static_categorical_features)}
    still["static_real_features"] = int(config.num_static_real_features)
    for kind, count in still.items():
        if count:
            values[kind] = torch.zeros(
                1, count, device=example.device, dtype=torch.long if "cat" in kind else example.dtype
            )
    return values


def _base(model: Any) -> Any:
    """The model without its head; a base model may hold a plain module under the name that heads keep theirs under."""
    from transformers import PreTrainedModel

    base = getattr(model, "base_model", model)
    if not isinstance(base, PreTrainedModel):
        return model
    named, taken = str(getattr(model, "main_input_name", "input_ids")), parameters(base)
    return base if named in taken or "args" in taken or named not in parameters(model) else model


def _main_input(model: Any) -> str:
    """The principal input; the first argument where the class names one that its forward does not take."""
    name = getattr(model, "main_input_name", "input_ids")
    name = str(name[0] if isinstance(name, list | tuple) else name)
    taken = parameters(model)
    if name in taken:
        return name
    return "input_ids" if taken[0] in ("args", "kwargs") else taken[0]  # a wrapper around a decoder hands everything on


def reads_text(model: Any) -> bool:
    """True where token ids are a model's principal input."""
    return _main_input(model) == "input_ids"


def grid_of(config: Any) -> tuple[int, int] | None:
    """Rows and columns of patches of the images or spectrograms that a config is made for, or None where it names no patches."""
    cut = cut_of(config)
    if cut is None:
        return None
    if hasattr(config, "time_stride"):
        return cut.grid(int(config.num_mel_bins), int(config.max_length))
    size = getattr(config, "image_size", None)
    return None if size is None else cut.grid(*_pair(size))


class Cut(NamedTuple):
    """How an image or spectrogram is cut into patches: their height and width, and the steps between them, in pixels."""

    patch: tuple[int, int]
    stride: tuple[int, int]

    def grid(self, height: int, width: int) -> tuple[int, int] | None:
        """Rows and columns of patches, or None where not one fits."""
        sides = zip((height, width), self.patch, self.stride, strict=True)
        rows, columns = ((side - patch) // stride + 1 for side, patch, stride in sides)
        return (rows, columns) if rows > 0 and columns > 0 else None


def cut_of(config: Any) -> Cut | None:
    """How a config cuts into patches, or None where it names none."""
    patch = getattr(config, "patch_size", None)
    if patch is None or 0 in _pair(patch):
        return None
    patch = _pair(patch)
    if hasattr(config, "time_stride") and hasattr(config, "frequency_stride"):
        return Cut(patch, (int(config.frequency_stride), int(config.time_stride)))
    return Cut(patch, patch)


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        return int(size["height"]), int(size["width"])
    return (int(size[-2]), int(size[-1])) if isinstance(size, list | tuple) else (int(size), int(size))


def _shapes(base: Any, name: str) -> Iterator[tuple[int, ...]]:
    """Shapes to try, the likeliest first."""
    config = base.config
    if name.startswith("pixel_values"):
        config = getattr(config, "vision_config", config)
        channels = int(getattr(config, "num_channels", None) or getattr(config, "in_channels", None) or 3)
        size = next((s for n in ("image_size", "img_size", "crop_size") if (s := getattr(config, n, None))), None)
        height, width = _pair(size if size is not None else 64)
        frames = int(getattr(config, "num_frames", 0) or getattr(config, "frames_per_clip", 0) or 0)
        if frames:
            yield (1, frames, channels, height, width)
        yield (1, channels, height, width)
        yield (1, channels, 224, 224)
        return
    bands = [int(v) for n in _BANDS if isinstance(v := getattr(config, n, None), int) and v > 1]
    lengths = [int(v) for n in _FRAMES if isinstance(v := getattr(config, n, None), int) and v > 1]
    for frames, band in itertools.product([*(2 * n for n in lengths), *lengths, 64, 100], [*bands, 80]):
        yield (1, band, frames)
        yield (1, frames, band)
    yield (1, 4000)
    yield (1, 1, 4000)


_BANDS = (
    "num_mel_bins",
    "feature_projection_input_dim",
    "input_feat_per_channel",
    "n_mels",
    "input_size",
    "input_dim",
    "hidden_size",
)
_FRAMES = ("max_source_positions", "max_length")


def forward(model: Any, values: dict[str, Tensor] | Tensor, decoder_ids: Tensor | None = None) -> dict[str, Tensor]:
    """Last hidden states of the base model, by name: a task head adds nothing that positions could hide in."""
    base = _base(model)
    keywords: dict[str, Any] = {**({"input_ids": values} if torch.is_tensor(values) else values), "return_dict": True}
    taken = parameters(base)
    if getattr(base.config, "is_encoder_decoder", False) and "decoder_input_ids" in taken:
        keywords["decoder_input_ids"] = decoder_ids if decoder_ids is not None else keywords.get("input_ids")
        if keywords["decoder_input_ids"] is None:
            keywords["decoder_input_ids"] = tokens(model)
    if "use_cache" in taken:
        keywords["use_cache"] = False
    output = base(**keywords)
    found = {name: value for name in OUTPUTS if torch.is_tensor(value := getattr(output, name, None))}
    if found:
        return found
    given = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else (output,)
    first = next((value for value in given if torch.is_tensor(value) and value.is_floating_point()), None)
    if first is None:
        raise UnsupportedHost(f"{type(model).__name__} gives back no numbers that a proof could look at")
    return {"output": first}
