"""The header of a GGUF file: its keys, and the small tensors that change frequencies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pospatch.errors import CheckpointError

__all__ = ["FACTORS", "Header", "only_gguf", "read_header"]

FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class Header:
    """What a GGUF says of its positions.

    Args:
        architecture: general.architecture.
        keys: every scalar and string, by its full name.
        factors: divisors of the frequencies, by the tensor's name.
        tensors: names of all tensors.
    """

    architecture: str
    keys: dict[str, Any]
    factors: dict[str, list[float]]
    tensors: frozenset[str]

    def get(self, key: str) -> Any:
        """A key below the architecture's name, or None."""
        return self.keys.get(f"{self.architecture}.{key}")

    @property
    def scaling(self) -> str:
        """The kind of scaling; "none" where none is stated."""
        return str(self.get("rope.scaling.type") or "none")


def read_header(file: Path) -> Header:
    """Keys and small tensors; weights are mapped, never read.

    Raises:
        CheckpointError: no whole GGUF file, or the package gguf is not installed.
    """
    try:
        from gguf import GGUFReader, GGUFValueType
    except ImportError as error:
        raise CheckpointError(f"reading {file.name} needs the package gguf: pip install gguf") from error
    try:
        reader = GGUFReader(file)
        keys = {
            name: found.contents()
            for name, found in reader.fields.items()
            if found.types and found.types[0] != GGUFValueType.ARRAY and not name.startswith("GGUF.")
        }
        small = [tensor for tensor in reader.tensors if tensor.name in FACTORS]
        factors = {tensor.name: tensor.data.astype(float).reshape(-1).tolist() for tensor in small}
        tensors = frozenset(tensor.name for tensor in reader.tensors)
    except (ValueError, KeyError, IndexError, OverflowError, OSError, MemoryError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is no whole GGUF file: {type(error).__name__}: {error!s:.200}") from error
    return Header(str(keys.get("general.architecture")), keys, factors, tensors)


def only_gguf(folder: Path) -> Path | None:
    """The one GGUF file of a folder, or the first part of the one that is split; None where there is none.

    Raises:
        CheckpointError: several.
    """
    found = [path for path in sorted(folder.glob("*.gguf")) if "-of-" not in path.stem or "-00001-of-" in path.stem]
    if len(found) > 1:
        raise CheckpointError(f"{folder} has several GGUF files: {[path.name for path in found]}; give the path of one")
    return found[0] if found else None
