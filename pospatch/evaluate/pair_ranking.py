"""Do a sentence encoder's similarities of pairs stay what they were: correlation with the unpatched encoder."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pospatch.errors import BadOption
from pospatch.evaluate._base import base_of
from pospatch.evaluate._encode import Wrapping, check_pooling, embed
from pospatch.evaluate._limits import refuse_too_long
from pospatch.evaluate._plot import draw_correlations as draw
from pospatch.evaluate._progress import bar
from pospatch.evaluate._result import Cells, Result, describe_model
from pospatch.evaluate._tokens import positive_lengths, text_tokens

__all__ = ["AUTO", "PROTOCOLS", "draw", "pair_ranking"]

AUTO = "AutoModel"
PROTOCOLS = {
    "unpatched": "cosine similarities of the same pairs under the same weights with the patch taken off",
    "base": "cosine similarities of the same pairs under a model given as base",
}


def pair_ranking(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    lengths: int | Sequence[int] = (32, 128),
    pairs: int = 200,
    base: Any = None,
    pooling: str = "mean",
    batch: int = 16,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Result:
    """Correlation of pair similarities between a patched encoder and the unpatched one, and with the pairs' overlap.

    A pair is two passages of `length` tokens from the text that share from none to all of their tokens, so similarities
    cover their whole range and a known order of the pairs exists. `pearson` and `spearman` compare with the base;
    `overlap` is Spearman's correlation of the model's own similarities with the shared part, `base_overlap` the base's.

    Args:
        model: a patched encoder that gives hidden states (AutoModel).
        tokenizer: its tokenizer.
        text: where the passages come from.
        lengths: passage lengths in tokens, special tokens included, at least 8; the base must read them.
        pairs: pairs per length, at least 8.
        base: the model to compare with, or the folder or repository of one; None takes the patch off for a while.
        pooling: `mean`, `cls` or `last`.
        batch: passages per forward.
        seed: of the passages.
        path: where to write the result (.json, .md and .png) and, meanwhile, finished cells to go on from.
        progress: show a bar on stderr.

    Raises:
        BadOption: no patch and no base; empty or short text; lengths or counts out of range.
        UnsupportedHost: no hidden states.
    """
    wanted = positive_lengths(lengths, 8)
    for name, count, least in (("pairs", pairs, 8), ("batch", batch, 1)):
        if not isinstance(count, int) or isinstance(count, bool) or count < least:
            raise BadOption(f"{name} must be an integer of at least {least}, got {count!r}")
    check_pooling(pooling)
    started = time.monotonic()
    tokens = text_tokens(tokenizer, text, 8 * wanted[-1])
    refuse_too_long(model, wanted[-1])
    label, record = describe_model(model)
    with base_of(model, base, AUTO) as plain:
        _, reference = describe_model(plain)
        refuse_too_long(plain, wanted[-1])
    protocol = "unpatched" if base is None else "base"
    options = {"pairs": pairs, "pooling": pooling, "base": reference}
    run = {"task": "pair_ranking", "protocol": protocol, "model": record, "options": options, "seed": seed}
    cells, wrapping, ids = Cells(path, run | {"text": tokens.record}), Wrapping(tokenizer), tokens.ids.tolist()
    todo = [length for length in wanted if str(length) not in cells]
    with bar(f"pair ranking, {label}", 4 * pairs * len(todo), progress) as advance:
        for length in todo:
            left, right, shared = _pairs(ids, length - wrapping.size, pairs, random.Random(f"{seed}/{length}"))
            passages = [wrapping.around(each) for each in (*left, *right)]
            with base_of(model, base, AUTO) as plain:
                before = _similarities(embed(plain, passages, pooling, batch, advance))
            own = _similarities(embed(model, passages, pooling, batch, advance))
            cells[str(length)] = _figures(own, before, torch.tensor(shared))
    rows = [{"length": length, "n": pairs, **cells[str(length)]} for length in wanted]
    return cells.conclude(
        started,
        label=label,
        lengths=wanted,
        rows=rows,
        n_scored_tokens=0,
        summary={name: min(row[name] for row in rows) for name in ("pearson", "spearman")},
    )


def _pairs(
    ids: list[int], size: int, pairs: int, chance: random.Random
) -> tuple[list[list[int]], list[list[int]], list[float]]:
    """Two passages a pair and the share of tokens that they have in common."""
    left, right, shared = [], [], []
    for index in range(pairs):
        away = round(size * index / (pairs - 1))
        start = chance.randrange(len(ids) - size - away + 1)
        left.append(ids[start : start + size])
        right.append(ids[start + away : start + away + size])
        shared.append(1 - away / size)
    return left, right, shared


def _similarities(vectors: Tensor) -> Tensor:
    first, second = vectors.double().chunk(2)
    return (first * second).sum(-1)


def _figures(own: Tensor, before: Tensor, shared: Tensor) -> dict[str, float]:
    return {
        "pearson": _pearson(own, before),
        "spearman": _pearson(_ranks(own), _ranks(before)),
        "difference": (own - before).abs().mean().item(),
        "overlap": _pearson(_ranks(own), _ranks(shared)),
        "base_overlap": _pearson(_ranks(before), _ranks(shared)),
    }


def _pearson(a: Tensor, b: Tensor) -> float:
    """Correlation, or 0 where one of the two is constant."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    scale = (a.norm() * b.norm()).item()
    return (a @ b).item() / scale if scale > 1e-12 else 0.0


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0, equal values sharing the mean of theirs."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() + 1) / 2)[inverse]
