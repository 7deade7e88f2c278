"""Read character vectors out of an R lazy-load database (.rdx index, .rdb data) without R.

The index is one serialized R list whose element `variables` maps a name to (offset, length) in the data file; each
piece there is its unpacked size (4 bytes, big endian) and a compressed serialized value. The serialization is R's
XDR format, described in "R Internals", section 1.8.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import zlib
from pathlib import Path
from typing import Any

from pospatch.errors import AssetError

__all__ = ["lazy_strings", "unserialize"]

_SYMBOL, _PAIRLIST, _CHAR, _LOGICAL, _INTEGER, _REAL, _STRING, _LIST = 1, 2, 9, 10, 13, 14, 16, 19
_REFERENCE, _NIL, _GLOBAL = 255, 254, 253
_LZMA2 = [{"id": lzma.FILTER_LZMA2, "preset": 6}]


def lazy_strings(index: Path, data: Path) -> dict[str, list[str]]:
    """All character vectors of a lazy-load database by name; other variables are left out.

    Raises:
        AssetError: a file is not in the expected format.
    """
    try:
        variables = unserialize(_decompress_index(index.read_bytes()))["variables"]
        raw = data.read_bytes()
        values = {
            name: unserialize(_decompress_piece(raw[offset : offset + size]))
            for name, (offset, size) in variables.items()
        }
    except (OSError, KeyError, TypeError, struct.error, zlib.error, lzma.LZMAError) as error:
        raise AssetError(
            f"{index.name} and {data.name} are not an R lazy-load database this can read: {error}"
        ) from error
    return {name: value for name, value in values.items() if isinstance(value, list) and isinstance(value[0], str)}


def unserialize(raw: bytes) -> Any:
    """The value in R's XDR serialization: strings, numbers and lists; named lists become dictionaries."""
    return _Reader(raw).value()


def _decompress_index(raw: bytes) -> bytes:
    return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else zlib.decompress(raw)


def _decompress_piece(piece: bytes) -> bytes:
    kind = piece[4:5]
    if kind == b"2":
        return bz2.decompress(piece[5:])
    if kind == b"Z":
        return lzma.decompress(piece[5:], format=lzma.FORMAT_RAW, filters=_LZMA2)
    return zlib.decompress(piece[4:])


class _Reader:
    """One pass over the bytes; `references` holds the symbols met so far."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.at, self.references = raw, 0, list[Any]()
        if raw[:2] != b"X\n":
            raise TypeError(f"XDR serialization starts with 'X\\n', got {raw[:2]!r}")
        self.at = 2
        version = self.integer()
        self.at += 8  # the versions of R that wrote it and that can read it
        if version >= 3:
            self.take(self.integer())  # the native encoding's name

    def take(self, size: int) -> bytes:
        self.at += size
        return self.raw[self.at - size : self.at]

    def integer(self) -> int:
        return int(struct.unpack(">i", self.take(4))[0])

    def vector(self, code: str, width: int) -> list[Any]:
        length = self.integer()
        return list(struct.unpack(f">{length}{code}", self.take(width * length)))

    def value(self) -> Any:
        flags = self.integer()
        kind, has_attributes = flags & 0xFF, bool(flags & 0x200)
        if kind in (_NIL, _GLOBAL):
            return None
        if kind == _REFERENCE:
            return self.references[(flags >> 8 or self.integer()) - 1]
        if kind == _PAIRLIST:
            return self.pairlist(flags)
        if kind == _SYMBOL:
            self.references.append(self.value())
            return self.references[-1]
        if kind == _CHAR:
            size = self.integer()
            return None if size < 0 else self.take(size).decode("utf-8", "replace")
        content = self.content(kind)
        names = (self.value() or {}).get("names") if has_attributes else None
        return dict(zip(names, content, strict=True)) if names else content

    def content(self, kind: int) -> list[Any]:
        if kind in (_INTEGER, _LOGICAL):
            return self.vector("i", 4)
        if kind == _REAL:
            return self.vector("d", 8)
        if kind == _STRING:
            return [self.value() or "" for _ in range(self.integer())]
        if kind == _LIST:
            return [self.value() for _ in range(self.integer())]
        raise TypeError(f"R type {kind} at byte {self.at} is none of strings, numbers, lists")

    def pairlist(self, flags: int) -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        while flags & 0xFF == _PAIRLIST:
            if flags & 0x200:
                self.value()  # attributes of the cell itself
            tag = self.value() if flags & 0x400 else str(len(pairs))
            pairs[tag] = self.value()
            flags = self.integer()
        return pairs
