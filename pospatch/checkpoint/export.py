"""`export`: a checkpoint that plain transformers, and whatever reads its checkpoints, understands without pospatch."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pospatch.checkpoint._architecture import architecture_form
from pospatch.checkpoint._check import Difference, compare
from pospatch.checkpoint._native_form import Form, native_form
from pospatch.checkpoint._publish import replacing
from pospatch.checkpoint._save import parts_of_a_model
from pospatch.checkpoint.llama_cpp import GgufExport, export_gguf
from pospatch.errors import BadOption, UnsupportedHost

__all__ = ["Export", "export"]


@dataclass
class Export:
    """What was written.

    Args:
        path: the folder.
        model_class: class of transformers that loads it.
        form: how the positions are said there.
        config: fields of config.json that say them.
        difference: largest difference of logits found in a clean process, in units of their spread; None where not asked.
        notes: what the reader of the checkpoint should know.
    """

    path: str
    model_class: str
    form: str
    config: dict[str, Any]
    difference: Difference | None
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        shown = {name: _short(value) for name, value in self.config.items()}
        lines = [
            f"{self.path}: {self.model_class}, {self.form}",
            *(f"  {name} = {text}" for name, text in shown.items()),
        ]
        checked = (
            "not verified" if self.difference is None else f"verified in a clean process: difference {self.difference}"
        )
        return "\n".join([*lines, f"  {checked}", *(f"  note: {note}" for note in self.notes)])


def export(
    model: Any,
    path: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    verify: bool = True,
    max_shard_size: str | None = None,
) -> Export | GgufExport:
    """Write the model so that plain transformers gives the same logits; the result knows nothing of pospatch.

    A fixed rotary spectrum becomes `rope_parameters`, a resized table a larger table, and where the host's own config has no
    word for the patch, another architecture that is equal to it (gpt2 with `rope` is a gpt_neox).

    Args:
        path: folder, where an older checkpoint is replaced as a whole; or a file that ends in .gguf, for llama.cpp.
        tokenizer: saved along, its model_max_length raised to what the model reads now; a GGUF must have one.
        verify: load it in a process without pospatch and compare logits, which costs one more copy of the model in memory; a
            GGUF is read back, its weights and the frequencies that llama.cpp computes from it are compared.
        max_shard_size: of a folder's files of weights, by default 5GB.

    Raises:
        UnsupportedHost: no exact native form exists; the message names the nearest honest way.
        CheckpointError: what was written did not give the same logits; nothing is left of it.
    """
    from pospatch.api import patch_of, unwrap
    from pospatch.checkpoint import adopt

    target = unwrap(model)
    adopt(target)
    _only_whole(target)
    form = _form(target, patch_of(target))
    if Path(path).suffix == ".gguf":
        if max_shard_size is not None:
            raise BadOption(f"max_shard_size={max_shard_size!r} would be ignored: a GGUF is one file")
        return export_gguf(form, path, tokenizer=tokenizer, verify=verify)
    with replacing(path, stale=parts_of_a_model()) as draft:
        _write(form, target, draft, max_shard_size or "5GB")
        length = _length(form)
        difference = compare(target, draft, form.model_class.__name__, length) if verify else None
        if tokenizer is not None:
            _save_tokenizer(tokenizer, draft, length)
    return Export(str(path), form.model_class.__name__, form.name, _said(form), difference, form.notes)


def _only_whole(model: Any) -> None:
    """Refuse a model whose weights are not all here under their own names."""
    for name, value in model.state_dict().items():
        if ".base_layer." in name or "lora_" in name:
            raise UnsupportedHost(
                f"{name} belongs to an adapter that is not merged; export the result of model.merge_and_unload()"
            )
        if value.device.type == "meta":
            raise UnsupportedHost(f"{name} is offloaded; load the model without offloading to export it")


def _form(model: Any, patch: Any) -> Form:
    """The form in the model's own architecture, else in another one."""
    try:
        return native_form(model, patch)
    except UnsupportedHost as error:
        try:
            other = architecture_form(model, patch)
        except UnsupportedHost as near:
            raise UnsupportedHost(f"{error} ({near})") from None
        if other is None:
            raise
        return other


def _write(form: Form, model: Any, folder: Path, max_shard_size: str) -> None:
    """Config, generation config and weights, by transformers' own writer."""
    import torch

    with torch.device("meta"):
        shell = form.model_class(form.config).to(form.config.dtype)
    if getattr(model, "generation_config", None) is not None and shell.can_generate():
        shell.generation_config = model.generation_config
    shell.save_pretrained(folder, state_dict=form.state, max_shard_size=max_shard_size)


def _length(form: Form) -> int | None:
    from pospatch.engine._geometry import trained_length
    from pospatch.hosts import host_of

    length = trained_length(form.config.get_text_config())
    host = host_of(form.config.model_type)
    if length and host is not None and host.counts_offset:
        length -= int(form.config.pad_token_id) + 1
    return length


def _save_tokenizer(tokenizer: Any, folder: Path, length: int | None) -> None:
    """The tokenizer cuts inputs at its model_max_length; it must not cut below what the model reads."""
    old = tokenizer.model_max_length
    try:
        if length is not None and old < length:
            tokenizer.model_max_length = length
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.model_max_length = old


def _said(form: Form) -> dict[str, Any]:
    config = form.config.get_text_config()
    names = ("model_type", "rope_parameters", "max_position_embeddings")
    return {name: getattr(config, name) for name in names if getattr(config, name, None) is not None}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 300 else text[:297] + "..."
