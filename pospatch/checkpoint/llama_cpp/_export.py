"""`export` to a path that ends in .gguf."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pospatch.checkpoint._folders import flush, flush_entries, locked_room, prefix_of, sweep
from pospatch.checkpoint._native_form import Form
from pospatch.checkpoint.llama_cpp._frequencies import FACTORS, NEAR, Said, difference, say
from pospatch.checkpoint.llama_cpp._vocabulary import write_vocabulary
from pospatch.errors import BadOption, CheckpointError, UnsupportedHost

__all__ = ["GgufExport", "export_gguf", "hindrance"]

CLASSES = ("LlamaForCausalLM", "MistralForCausalLM")  # that llama.cpp's architecture "llama" is
ARCHITECTURE = "llama"
WANTED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "sliding_window": None}
WAY_OUT = "nearest: pospatch.export(model, folder), which vLLM and plain transformers read"
FILE_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 32}  # general.file_type


@dataclass
class GgufExport:
    """What was written.

    Args:
        path: the file.
        form: how the positions are said there.
        keys: the positional keys, below the architecture's name.
        difference: largest relative difference of a frequency or of the amplitude, as llama.cpp computes them from the file;
            None where it was not read back.
        notes: what the reader of the file should know.
    """

    path: str
    form: str
    keys: dict[str, Any]
    difference: float | None
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        checked = (
            "not read back"
            if self.difference is None
            else f"read back: weights equal to the bit, frequencies as llama.cpp computes them within {self.difference:.1e}"
        )
        keys = [f"  {ARCHITECTURE}.{name} = {value}" for name, value in self.keys.items()]
        return "\n".join(
            [f"{self.path}: {self.form}", *keys, f"  {checked}", *(f"  note: {note}" for note in self.notes)]
        )


def export_gguf(form: Form, path: str | os.PathLike[str], *, tokenizer: Any, verify: bool) -> GgufExport:
    """Write an exact native form as one GGUF.

    Raises:
        UnsupportedHost: llama.cpp would compute something else; the message names the nearest honest way.
        CheckpointError: `path` is a folder, what was written is not what was meant, or the package gguf is missing; nothing is
            left of it.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise CheckpointError("writing a GGUF needs the package gguf: pip install 'pospatch[gguf]'") from error
    file = Path(os.path.realpath(path))
    if file.is_dir():
        raise CheckpointError(f"{path} is a folder; give a file to export to")
    _check(form, tokenizer)
    spectrum = _spectrum(form)
    said = say(form.config, *spectrum)
    tensors = _tensors(form, said)
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked_room(file.parent, prefix_of(file), file.parent) as room:
        draft = room / file.name
        _write(draft, form, said, tensors, tokenizer)
        worst = _read_back(draft, said, tensors, *spectrum) if verify else None
        flush(room)
        os.replace(draft, file)
        flush_entries(file.parent)
    sweep(file.parent, prefix_of(file))
    how = f"{said.keys.get('rope.scaling.type', 'plain')} frequencies"
    if said.factors is not None:
        how = f"a divisor for each of {len(said.factors)} pairs ({FACTORS})"
    notes = [
        *form.notes,
        "transformers drops scaling keys and divisors of a GGUF; pospatch.from_pretrained(..., gguf_file=...) puts them back",
    ]
    plain = said.factors is None and not any(name.startswith("rope.scaling.") for name in said.keys)
    return GgufExport(str(path), f"GGUF, architecture {ARCHITECTURE}, {how}", said.keys, worst,
                      form.notes if plain else notes)  # fmt: skip


def hindrance(name: str, config: Any, dtype: torch.dtype | None) -> str | None:
    """Why a model of this class and config has no exact GGUF, with the nearest way; None where nothing of it says so."""
    if name not in CLASSES:
        return (
            f"{name} has no exact GGUF; known are {', '.join(CLASSES)} (llama.cpp's GELU is looked up in half precision, and "
            f"its other architectures read no divisors of the frequencies); {WAY_OUT}"
        )
    for field_name, wanted in WANTED.items():
        got = getattr(config, field_name, wanted)
        if got != wanted:
            return f"{field_name}={got!r}, and llama.cpp's llama has {wanted!r}; {WAY_OUT}"
    parameters = getattr(config, "rope_parameters", None) or {}
    if parameters.get("rope_type") == "dynamic":
        return "llama.cpp has no frequencies that follow the length of the input; nearest: apply 'ntk' with the same factor"
    if parameters.get("short_factor") != parameters.get("long_factor"):
        return (
            "llama.cpp chooses between short_factor and long_factor by the size of its context, transformers by the length of "
            "the input; nearest: apply 'longrope' with long_factor as both lists"
        )
    if dtype not in FILE_TYPES:
        return f"a GGUF holds float32, float16 or bfloat16, got {dtype}; convert the model first"
    return None


def _check(form: Form, tokenizer: Any) -> None:
    if reason := hindrance(form.model_class.__name__, form.config, form.config.dtype):
        raise UnsupportedHost(reason)
    if tokenizer is None:
        raise BadOption("a GGUF carries its vocabulary, and llama.cpp's server stops without one: give tokenizer=...")


def _spectrum(form: Form) -> tuple[Tensor, float]:
    """(inv_freq, amplitude) as transformers computes them from the form's config."""
    from pospatch.checkpoint.doctor._used import look

    inv_freq, amplitude = look(form.config).spectra[None]
    if 2 * len(inv_freq) != _head_dim(form.config):
        raise UnsupportedHost(f"{2 * len(inv_freq)} of {_head_dim(form.config)} dimensions rotate; {WAY_OUT}")
    return inv_freq, amplitude


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _tensors(form: Form, said: Said) -> dict[str, Tensor]:
    """All tensors by llama.cpp's names, in its order of rows."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    config = form.config
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    found = {} if said.factors is None else {FACTORS: said.factors}
    for name, value in form.state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise UnsupportedHost(f"llama.cpp's llama has no tensor for {name}; {WAY_OUT}")
        count = heads.get(name.split(".")[-2])
        data = value.detach().cpu()
        found[known] = _in_turn(data, count) if count else data.float() if data.dim() == 1 else data
    return found


def _in_turn(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head from (first halves, second halves) to pairs side by side, which llama.cpp rotates together."""
    return weight.view(heads, 2, weight.shape[0] // heads // 2, -1).transpose(1, 2).reshape(weight.shape).contiguous()


def _write(file: Path, form: Form, said: Said, tensors: dict[str, Tensor], tokenizer: Any) -> None:
    from gguf import GGUFWriter

    config = form.config
    writer = GGUFWriter(file, ARCHITECTURE)
    try:
        writer.add_file_type(FILE_TYPES[config.dtype])
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(_head_dim(config))
        writer.add_value_length(_head_dim(config))
        writer.add_rope_dimension_count(_head_dim(config))
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
        for name, value in said.keys.items():
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
            add(f"{ARCHITECTURE}.{name}", value)
        write_vocabulary(writer, tokenizer, config.vocab_size)
        for name, tensor in tensors.items():
            writer.add_tensor(name, *_stored(tensor))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _stored(tensor: Tensor) -> tuple[Any, ...]:
    """The array as it is written; bfloat16, which numpy has not, by its bytes."""
    from gguf import GGMLQuantizationType

    if tensor.dtype != torch.bfloat16:
        return (tensor.contiguous().numpy(),)
    return tensor.contiguous().view(torch.uint8).numpy(), None, GGMLQuantizationType.BF16


def _read_back(file: Path, said: Said, tensors: dict[str, Tensor], inv_freq: Tensor, amplitude: float) -> float:
    """Largest relative difference of a frequency or of the amplitude, from what stands in the file, whose keys are float32.

    Raises:
        CheckpointError: it is beyond rounding, or the weights are not equal to the bit.
    """
    import numpy as np
    from gguf import GGUFReader

    from pospatch.checkpoint.doctor._gguf import read_header

    header, reader = read_header(file), GGUFReader(file)
    stored = {tensor.name: tensor.data for tensor in reader.tensors}
    for name, tensor in tensors.items():
        if not np.array_equal(stored[name].view(np.uint8), _stored(tensor)[0].view(np.uint8)):
            raise CheckpointError(f"{name} was not written as it is; nothing was kept. Is the disk full?")
    factors = torch.tensor(header.factors[FACTORS]) if FACTORS in header.factors else None
    keys = {name: header.get(name) for name in said.keys}
    worst = difference(keys, factors, inv_freq, amplitude)
    if not worst <= 2 * NEAR:
        raise CheckpointError(
            f"llama.cpp computes other frequencies from what was written, by {worst:.1e}; nothing was kept. "
            "Please report it, with the model's config.json"
        )
    return worst
