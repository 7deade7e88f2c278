"""What a measurement leaves: every number with the protocol, method, model, text and versions that it belongs to."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pospatch.errors import BadOption, UnsupportedHost

__all__ = [
    "Cells",
    "Result",
    "beside",
    "compare",
    "describe_model",
    "versions",
    "write_bytes",
    "write_json",
    "write_text",
]

_PACKAGES = ("pospatch", "torch", "transformers", "tokenizers")


def versions() -> dict[str, str]:
    """Versions of what computed the numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


@dataclass(kw_only=True)
class Result:
    """One task's numbers on one model.

    `rows` holds one dictionary a cell; `summary` a few figures over all of them; lengths and positions are in tokens,
    losses in nats a token.
    """

    task: str
    protocol: str
    label: str
    model: dict[str, Any]
    options: dict[str, Any]
    lengths: list[int]
    rows: list[dict[str, Any]]
    n_scored_tokens: int
    summary: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] | None = None
    seed: int | None = None
    seconds: float | None = None
    versions: dict[str, str] = field(default_factory=versions)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON types."""
        return asdict(self)

    def save(self, path: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Write `path` with the suffixes .json, .md and .png, side by side, and return the paths of the JSON and the picture.

        >>> perplexity(model, tokenizer, text=text, lengths=16384).save("results/yarn")  # doctest: +SKIP
        """
        return compare([self], path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> list[Result]:
        """The results in a JSON file written by `save` or `compare`.

        Raises:
            BadOption: the file holds something else.
        """
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        try:
            return [cls(**each) for each in content["results"]]
        except (TypeError, KeyError) as error:
            raise BadOption(
                f"{path} holds no pospatch results ({error}); give a file written by Result.save"
            ) from error


def beside(path: str | os.PathLike[str], suffix: str) -> Path:
    """The file of a result with this suffix. The path may end as one of its files does; another dot is the name's own.

    >>> beside("runs/llama.8k", ".png").name, beside("runs/yarn.json", ".png").name
    ('llama.8k.png', 'yarn.png')
    """
    base = Path(path)
    name = base.stem if base.suffix in (".json", ".png", ".md") else base.name
    return base.with_name(name + suffix)


def compare(results: Sequence[Result], path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write several results of one task into one JSON, one Markdown file and one picture.

    Returns:
        The paths of the JSON and of the picture. The numbers are written first: a picture that fails costs none of them.

    Raises:
        BadOption: none, or of different tasks or protocols, whose numbers must not share a picture.
    """
    from pospatch.evaluate._markdown import markdown
    from pospatch.evaluate._plot import check_kind, plot

    check_kind(results)

    written = write_json(beside(path, ".json"), {"results": [each.to_dict() for each in results]})
    write_text(beside(path, ".md"), markdown(results))
    return written, plot(results, beside(path, ".png"))


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Write strict JSON atomically: a reader sees the old file or the new one, never half of it."""
    return write_text(path, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_text(path: Path, content: str) -> Path:
    """Write a text file atomically; errors as of `write_bytes`."""
    return write_bytes(path, content.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file atomically.

    Raises:
        BadOption: it cannot be written: the disk is full, or the folder is not ours.
    """
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        half.write_bytes(content)
        half.replace(path)
    except OSError as error:
        with suppress(OSError):
            half.unlink(missing_ok=True)
        raise BadOption(f"{path} cannot be written: {error.strerror}; what was finished before is kept") from error
    return path


class Cells:
    """Finished cells of a run, kept on disk when there is a path, so that an interrupted run goes on where it was.

    A file of another run (other model or weights, method, options, text) is not used: its key differs.
    """

    def __init__(self, path: str | os.PathLike[str] | None, run: dict[str, Any]) -> None:
        self.run, self.target = run, path
        self.path = beside(path, ".partial.json") if path is not None else None
        self.key = hashlib.sha256(json.dumps(run, sort_keys=True, default=str).encode()).hexdigest()
        self.done: dict[str, Any] = {}
        if self.path is not None and self.path.is_file():
            saved = json.loads(self.path.read_text(encoding="utf-8"))
            self.done = saved["cells"] if saved.get("run") == self.key else {}

    def __contains__(self, cell: str) -> bool:
        return cell in self.done

    def __getitem__(self, cell: str) -> Any:
        return self.done[cell]

    def __setitem__(self, cell: str, value: Any) -> None:
        self.done[cell] = value
        if self.path is not None:
            # not strict: a loss may be NaN, and only this class reads the file
            write_text(self.path, json.dumps({"run": self.key, "cells": self.done}))

    def conclude(self, started: float, **fields: Any) -> Result:
        """The result of the complete run, written where the run has a path.

        started: `time.monotonic()` when the task began; fields: those of `Result` that the run itself does not hold.
        """
        result = Result(**self.run, **fields, seconds=round(time.monotonic() - started, 1))
        if self.target is not None:
            result.save(self.target)
        self.finish()
        return result

    def finish(self) -> None:
        """Remove the file: the run is complete."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def describe_model(model: Any) -> tuple[str, dict[str, Any]]:
    """A short label of the positional method, and the model's record: name, size, dtype, weights, what pospatch sees in it."""
    import pospatch
    from pospatch.evaluate._fingerprint import fingerprint

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = inner.config.get_text_config(decoder=True)
    try:
        seen = pospatch.inspect(inner).to_dict()
    except UnsupportedHost as error:  # numbers of any causal model are welcome, so this is written down, not raised
        seen = {
            "method": None,
            "trained_length": getattr(config, "max_position_embeddings", None),
            "refused": str(error),
        }
    parameter = next(inner.parameters())
    record = {
        "name": Path(str(config._name_or_path)).name or type(inner).__name__,
        "class": type(model).__name__,
        "parameters": sum(each.numel() for each in model.parameters()),
        "weights": fingerprint(model),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": parameter.device.type,
        "attention": config._attn_implementation,
        "rope_parameters": getattr(config, "rope_parameters", None),
        "positions": seen,
    }
    return _label(seen.get("stack"), record["rope_parameters"]), json.loads(json.dumps(record, default=str))


def _label(stack: list[dict[str, Any]] | None, rope_parameters: Any) -> str:
    if stack:
        return " + ".join(_with_factor(each["method"], each.get("factor")) for each in stack)
    kind = (rope_parameters or {}).get("rope_type", "default")
    return "as it is" if kind == "default" else f"{_with_factor(kind, rope_parameters.get('factor'))} (native)"


def _with_factor(name: str, factor: float | None) -> str:
    return name if factor is None else f"{name} x{factor:g}"
