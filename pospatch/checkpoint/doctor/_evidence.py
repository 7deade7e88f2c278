"""All that is known of a checkpoint without its weights, gathered once; the checks read nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pospatch.checkpoint import _peft_save, _save, adapter
from pospatch.checkpoint._record import methods_of
from pospatch.checkpoint.doctor._claims import Claims, claims
from pospatch.checkpoint.doctor._files import Files, Folder, open_files, read_json
from pospatch.checkpoint.doctor._gguf import Header, only_gguf, read_header, without_vocabulary
from pospatch.checkpoint.doctor._used import Used, use
from pospatch.checkpoint.doctor._weights import Weights, weights_of
from pospatch.errors import BadOption, CheckpointError, PospatchError

__all__ = ["Evidence", "gather", "gather_files"]

KINDS = {"config.json": "model", "adapter_config.json": "peft adapter", "pospatch_adapter.json": "pospatch adapter"}
TENSORS = {"model": _save.TENSORS, "peft adapter": _peft_save.TENSORS, "pospatch adapter": adapter.TENSORS}


@dataclass(frozen=True)
class Evidence:
    """What was read.

    Args:
        source: the path or repository.
        kind: "model", "peft adapter", "pospatch adapter" or "gguf".
        files: the files.
        raw: config.json; of a checkpoint that only pospatch reads the base's.
        record: the patch record, unchecked, or None.
        stack: its methods; empty where there are none or the record is bad.
        used: what transformers makes of it.
        weights: names and shapes in the weights' headers.
        tokenizer: tokenizer_config.json.
        adapter: adapter_config.json or pospatch_adapter.json.
        base: the same of an adapter's base, where it is at hand.
        gguf: a GGUF file's header.
    """

    source: str
    kind: str
    files: Files
    raw: dict[str, Any] = field(default_factory=dict)
    record: Any = None
    stack: tuple[Any, ...] = ()
    used: Used = field(default_factory=Used)
    weights: Weights = field(default_factory=Weights)
    tokenizer: dict[str, Any] | None = None
    adapter: dict[str, Any] | None = None
    base: Evidence | None = None
    gguf: Header | None = None

    @property
    def claims(self) -> Claims:
        """What config.json says about rotary positions."""
        return claims(self.raw)

    @property
    def own(self) -> bool:
        """True for a checkpoint that only pospatch reads."""
        return self.kind == "model" and isinstance(self.record, dict) and not self.record.get("native")


def gather(
    path: str | os.PathLike[str],
    *,
    auto_class: str | None = None,
    base: str | os.PathLike[str] | None = None,
    **hub: Any,
) -> Evidence:
    """Read a folder, a repository or a GGUF file.

    Raises:
        CheckpointError: nothing there that could be looked at.
        BadOptionType: an option that is none.
    """
    file = Path(path).expanduser()
    if file.suffix == ".gguf" and file.is_file():
        _none_ignored(path, {"base": base, **hub})
        return _gguf(Folder(file.parent, str(path)), file, auto_class)
    return gather_files(open_files(path, hub), auto_class=auto_class, base=base, hub=hub)


def _none_ignored(path: Any, given: dict[str, Any]) -> None:
    odd = [name for name, value in given.items() if value is not None]
    if odd:
        raise BadOption(f"{odd[0]}=... would be ignored: {path} is no adapter and no repository")


def gather_files(
    files: Files,
    *,
    auto_class: str | None = None,
    base: Any = None,
    hub: dict[str, Any] | None = None,
    only_models: bool = False,
) -> Evidence:
    """Read what lies in a folder or repository; of a base no adapter, which may name itself as its own."""
    names = files.names()
    kinds = {name: kind for name, kind in KINDS.items() if kind == "model" or not only_models}
    for name, kind in kinds.items():
        if (names is None or name in names) and (content := read_json(files, name)) is not None:
            if kind == "model":
                _none_ignored(files.source, {"base": base})
                return _model(files, content, auto_class)
            return _adapter(files, kind, content, base, hub or {})
    if isinstance(files, Folder) and (file := only_gguf(files.folder)):
        return _gguf(files, file, auto_class)
    if names and any(name.endswith(".gguf") for name in names):
        raise CheckpointError(f"{files.source} has GGUF files only; download one and give its path")
    raise CheckpointError(f"{files.source} is no checkpoint: no {', no '.join(kinds)}, no .gguf file")


def _model(files: Files, raw: dict[str, Any], auto_class: str | None) -> Evidence:
    record = raw.get("pospatch")
    inner = record.get("base_config") if isinstance(record, dict) else None
    stack = _stack(record) if record is not None else ()
    config = files.path("config.json")
    assert config is not None
    return Evidence(
        files.source,
        "model",
        files,
        inner if isinstance(inner, dict) else raw,
        record,
        stack,
        use(config.parent, raw, auto_class, list(stack)),
        weights_of(files, TENSORS["model"]),
        read_json(files, "tokenizer_config.json"),
    )


def _adapter(files: Files, kind: str, content: dict[str, Any], base: Any, hub: dict[str, Any]) -> Evidence:
    peft = kind == "peft adapter"
    record = content.get("pospatch") if peft else content
    return Evidence(
        files.source,
        kind,
        files,
        record=record,
        stack=_stack(record) if record is not None else (),
        weights=weights_of(files, TENSORS[kind]),
        tokenizer=read_json(files, "tokenizer_config.json"),
        adapter=content,
        base=_base(
            base if base is not None else content.get("base_model_name_or_path") if peft else None, base, files, hub
        ),
    )


def _base(name: Any, asked: Any, files: Files, hub: dict[str, Any]) -> Evidence | None:
    """The base of an adapter; of one that the adapter names and that is not at hand, None."""
    if not isinstance(name, str | os.PathLike) or not str(name):
        return None
    here: dict[str, Any] = {key: hub[key] for key in ("cache_dir", "token", "local_files_only") if key in hub}
    file = Path(name).expanduser()
    if asked is None and not isinstance(files, Folder) and file.exists():
        return None  # what was downloaded names no place on this machine
    if file.is_dir():
        here = {}
    elif asked is None and isinstance(files, Folder):
        here["local_files_only"] = True  # a file on this machine sends nobody to the network
    try:
        return gather(name) if file.is_file() else gather_files(open_files(name, here), only_models=True)
    except PospatchError:
        if asked is not None:
            raise
        return None


def _stack(record: Any) -> tuple[Any, ...]:
    try:
        return tuple(methods_of(record))
    except CheckpointError:
        return ()  # the check of the record says it


def _gguf(files: Folder, file: Path, auto_class: str | None) -> Evidence:
    header = read_header(file)
    with without_vocabulary(header) as short:
        counts = {"blocks": header.get("block_count"), "experts": header.get("expert_count")}
        used = use(short.parent, counts, auto_class, [], short.name)
    return Evidence(files.source, "gguf", files, used=used, gguf=header)
