"""Texts as token ids, with what makes a number repeatable: fingerprint, counts, beginning-of-sequence token."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pospatch.errors import BadOption, BadOptionType

__all__ = ["Tokens", "encode", "positive_lengths", "prefix_of", "text_tokens"]

_CHARACTERS_PER_TOKEN = 8  # first guess of how much text to read; doubled until there are enough tokens


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Token ids (length,) of a text without special tokens, the tokens put before every window, and the record."""

    ids: Tensor
    prefix: list[int]
    record: dict[str, Any]

    def window(self, start: int, end: int) -> Tensor:
        """Ids (1, end - start) of a window, beginning with the prefix, which counts towards its length."""
        head = torch.tensor(self.prefix, dtype=torch.long)
        return torch.cat([head, self.ids[start : end - len(self.prefix)]])[None]


def encode(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text without special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def prefix_of(tokenizer: Any) -> list[int]:
    """The beginning-of-sequence token, where this tokenizer puts one in front of a text."""
    empty = list(tokenizer("", verbose=False)["input_ids"])
    return empty[:1] if empty and empty[0] == getattr(tokenizer, "bos_token_id", None) else []


def text_tokens(tokenizer: Any, text: str, wanted: int) -> Tokens:
    """At least `wanted` tokens of `text`; only as much of the text is tokenized as is needed.

    Raises:
        BadOption: the text is empty or too short.
    """
    if not isinstance(text, str):
        raise BadOptionType(f"text must be a string, got {type(text).__name__}; read the file first")
    if not text.strip():
        raise BadOption(f"the text is empty ({len(text)} characters); a text of at least {wanted} tokens is wanted")
    prefix = prefix_of(tokenizer)
    read = wanted * _CHARACTERS_PER_TOKEN
    ids = encode(tokenizer, text[:read])
    # The last tokens of a cut text may differ from the whole text's, so a few more than wanted are asked for.
    while len(ids) < wanted + 16 and read < len(text):
        read *= 2
        ids = encode(tokenizer, text[:read])
    if len(ids) + len(prefix) < wanted:
        raise BadOption(
            f"the text has {len(ids)} tokens ({len(text)} characters), {wanted} are wanted: "
            "give a longer text or smaller lengths"
        )
    record = {
        "sha256": hashlib.sha256(text.encode("utf-8")).hexdigest(),
        "characters": len(text),
        "begins": text[:60],
        "bos": bool(prefix),
    }
    return Tokens(ids=torch.tensor(ids[:wanted], dtype=torch.long), prefix=prefix, record=record)


def positive_lengths(lengths: Any, least: int) -> list[int]:
    """Sorted distinct lengths in tokens from one int or several.

    Raises:
        BadOptionType: not integers.
        BadOption: none, or one below `least`.
    """
    several = list(lengths) if isinstance(lengths, Sequence | set | range) else [lengths]
    if not all(isinstance(length, int) and not isinstance(length, bool) for length in several):
        raise BadOptionType(f"lengths must be integers in tokens, got {lengths!r}")
    if not several or min(several) < least:
        raise BadOption(f"lengths must be at least {least} tokens each, got {several}")
    return sorted(set(several))
