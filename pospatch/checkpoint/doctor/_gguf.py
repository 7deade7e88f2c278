"""The header of a GGUF file: its keys, and the small tensors that change frequencies; vocabulary and weights are stepped over."""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pospatch.errors import CheckpointError

__all__ = ["FACTORS", "Header", "only_gguf", "read_header", "without_vocabulary"]

FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
FLOATS = {0: "f", 1: "e"}  # of the tensors that are read
MOST = 2**20  # keys or tensors
LONG = 4096  # entries from which an array is a vocabulary


@dataclass(frozen=True)
class Header:
    """What a GGUF says of its positions.

    Args:
        architecture: general.architecture.
        keys: every scalar and string, by its full name.
        factors: divisors of the frequencies, by the tensor's name.
        tensors: names of all tensors.
        short: the bytes of the header without its long arrays.
        size: bytes of the file.
    """

    architecture: str
    keys: dict[str, Any]
    factors: dict[str, list[float]]
    tensors: frozenset[str]
    short: bytes = field(repr=False)
    size: int

    def get(self, key: str) -> Any:
        """A key below the architecture's name, or None."""
        return self.keys.get(f"{self.architecture}.{key}")

    @property
    def factor(self) -> Any:
        """The factor of the scaling as llama.cpp takes it, under its key or the older one; 1 where none is stated."""
        stated = self.get("rope.scaling.factor")
        return (self.get("rope.scale_linear") if stated is None else stated) or 1.0

    @property
    def scaling(self) -> str:
        """The kind of scaling; where none is stated, llama.cpp's default for a factor, else "none"."""
        return str(self.get("rope.scaling.type") or ("none" if self.factor == 1.0 else "linear"))


class _Cursor:
    """A place in the file."""

    def __init__(self, data: Any) -> None:
        self.data, self.at = data, 0

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def skip(self, count: int) -> None:
        if count > len(self.data) - self.at:
            raise ValueError(f"{count} bytes are said to follow, and {len(self.data) - self.at} do")
        self.at += count

    def text(self) -> str:
        length = self.number("<Q")
        start = self.at
        self.skip(length)
        return self.data[start : self.at].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A scalar or string; of an array the number of its entries."""
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(SCALARS[kind])
        inner, count = self.number("<I"), self.number("<Q")
        if inner in SCALARS:
            self.skip(count * struct.calcsize(SCALARS[inner]))
        else:
            for _ in range(count):
                self.skip(self.number("<Q")) if inner == STRING else self.value(inner)
        return count


def read_header(file: Path) -> Header:
    """Keys and small tensors.

    Raises:
        CheckpointError: no whole GGUF file.
    """
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _header(_Cursor(data))
    except (ValueError, KeyError, TypeError, ArithmeticError, struct.error, OSError, RecursionError) as error:
        raise CheckpointError(f"{file} is no whole GGUF file: {type(error).__name__}: {error!s:.200}") from error


def _header(cursor: _Cursor) -> Header:
    magic, version = cursor.data[:4], struct.unpack_from("<I", cursor.data, 4)[0]
    cursor.at = 8
    tensors, count = cursor.number("<Q"), cursor.number("<Q")
    if magic != b"GGUF" or version not in (2, 3) or max(tensors, count) > MOST:
        raise ValueError(f"it begins with {bytes(magic)!r}, version {version}, {tensors} tensors, {count} keys")
    keys: dict[str, Any] = {}
    kept: list[bytes] = []
    for _ in range(count):
        start, name = cursor.at, cursor.text()
        kind = cursor.number("<I")
        value = cursor.value(kind)
        if kind != ARRAY:
            keys[name] = value
        if kind != ARRAY or value < LONG:
            kept.append(cursor.data[start : cursor.at])
    start = cursor.at
    found = [_tensor(cursor) for _ in range(tensors)]
    head = struct.pack("<4sIQQ", b"GGUF", version, tensors, len(kept))
    short = head + b"".join(kept) + cursor.data[start : cursor.at]
    align = int(keys.get("general.alignment", 32))
    begin = -(-cursor.at // align) * align
    factors = {
        name: _values(cursor.data, shape, kind, begin + at) for name, shape, kind, at in found if name in FACTORS
    }
    names = frozenset(name for name, *_ in found)
    return Header(str(keys.get("general.architecture")), keys, factors, names, short, len(cursor.data))


def _tensor(cursor: _Cursor) -> tuple[str, int, int, int]:
    """(name, elements, type, offset) of one tensor."""
    name, elements = cursor.text(), 1
    for _ in range(min(cursor.number("<I"), 8)):
        elements *= cursor.number("<Q")
    return name, elements, cursor.number("<I"), cursor.number("<Q")


def _values(data: Any, elements: int, kind: int, start: int) -> list[float]:
    if elements > LONG or kind not in FLOATS:
        raise ValueError(f"divisors of the frequencies of type {kind}, {elements} of them")
    return list(struct.unpack_from(f"<{elements}{FLOATS[kind]}", data, start))


@contextmanager
def without_vocabulary(header: Header) -> Iterator[Path]:
    """A file of the same header without its long arrays, with a hole for the weights: transformers reads it at once."""
    with tempfile.TemporaryDirectory(prefix="pospatch-") as room:
        file = Path(room) / "header.gguf"
        file.write_bytes(header.short)
        os.truncate(file, len(header.short) + header.size)
        yield file


def only_gguf(folder: Path) -> Path | None:
    """The one GGUF file of a folder, or the first part of the one that is split; None where there is none.

    Raises:
        CheckpointError: several.
    """
    found = [path for path in sorted(folder.glob("*.gguf")) if "-of-" not in path.stem or "-00001-of-" in path.stem]
    if len(found) > 1:
        raise CheckpointError(f"{folder} has several GGUF files: {[path.name for path in found]}; give the path of one")
    return found[0] if found else None
