"""Perplexity of a long text: by position in one pass, or over a list of lengths under a named protocol."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from pospatch.errors import BadOption, UnknownName, suggest
from pospatch.evaluate._head import SlicedHead, layer_list
from pospatch.evaluate._limits import refuse_too_long
from pospatch.evaluate._plot import draw_curves as draw
from pospatch.evaluate._progress import bar
from pospatch.evaluate._result import Cells, Result, describe_model
from pospatch.evaluate._tokens import Tokens, positive_lengths, text_tokens

__all__ = ["PROTOCOLS", "draw", "perplexity"]

PROTOCOLS = {
    "by_position": "one pass over the first `length` tokens, losses averaged by position in buckets",
    "truncated": "one pass over the first `length` tokens, all losses averaged (YaRN's published curves)",
    "strided": "windows of `length` moved on by `stride` over the same text, new tokens scored (all of the first window)",
    "last_k": "windows of every length that end at the same tokens, losses of the last `k`: only the context differs",
}
_LEAST = 8


def perplexity(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    lengths: int | Sequence[int],
    protocol: str = "by_position",
    bucket: int = 2048,
    k: int = 256,
    windows: int = 4,
    stride: int = 256,
    slice_size: int = 256,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Result:
    """Perplexity of `text` under a causal model, exp of the mean negative log-likelihood in nats a token.

    The first token of a window is context only. A tokenizer that puts a beginning-of-sequence token in front gets it in
    front of every window, counted in its length. Means are over tokens, not over windows.

    Args:
        model: any causal language model, patched or not.
        tokenizer: its tokenizer.
        text: the text itself (see `pospatch.assets.text`).
        lengths: window lengths in tokens, at least 8 each.
        protocol: `by_position`, `truncated`, `strided` or `last_k`; see PROTOCOLS. These are four different numbers.
        bucket: tokens per bucket of `by_position`.
        k: tokens scored at the end of each window of `last_k`; below the shortest length.
        windows: windows per length of `last_k`, with their ends spread evenly over the text; of the longest length of
            `strided`, whose other lengths read the same text in more of them.
        stride: tokens by which the windows of `strided` move on, at most the shortest length.
        slice_size: positions whose logits exist at once.
        path: where to write the result (.json, .md and .png) and, meanwhile, finished cells to go on from.
        progress: show a bar on stderr.

    Raises:
        UnknownName: no such protocol.
        BadOption: empty or short text, lengths or sizes out of range.
        UnsupportedHost: not a causal language model.
    """
    wanted = positive_lengths(lengths, _LEAST)
    _check(protocol, wanted, {"bucket": bucket, "k": k, "windows": windows, "stride": stride, "slice_size": slice_size})
    started = time.monotonic()
    tokens = text_tokens(tokenizer, text, _tokens_needed(protocol, wanted[-1], k, windows, stride))
    refuse_too_long(model, wanted[-1])
    label, record = describe_model(model)
    options = _options(protocol, bucket, k, windows, stride)
    plan = _plan(protocol, wanted, len(tokens.ids) + len(tokens.prefix), k, windows, stride)
    cells = Cells(
        path, {"task": "perplexity", "protocol": protocol, "model": record, "options": options, "text": tokens.record}
    )
    scorer = _Scorer(SlicedHead(model, slice_size), tokens, bucket if protocol == "by_position" else None)
    todo = [(length, *each) for length, ends in plan.items() for each in ends if f"{length}@{each[0]}" not in cells]
    with bar(f"perplexity, {label}", len(todo) * len(layer_list(scorer.head.decoder)), progress) as advance:
        for length, end, scored in todo:
            cells[f"{length}@{end}"] = scorer.score(length, end, scored, advance)
    rows = [
        row
        for length, ends in plan.items()
        for row in _rows(length, [cells[f"{length}@{end}"] for end, _ in ends], bucket)
    ]
    rows = rows if protocol == "by_position" else _per_length(rows)
    return cells.conclude(
        started,
        label=label,
        lengths=wanted,
        rows=rows,
        n_scored_tokens=sum(row["n"] for row in rows),
        summary=_summary(rows),
    )


class _Scorer:
    """Losses of one window, summed in buckets."""

    def __init__(self, head: SlicedHead, tokens: Tokens, bucket: int | None) -> None:
        self.head, self.tokens, self.bucket = head, tokens, bucket

    def score(self, length: int, end: int, scored: int, advance: Any) -> dict[str, list[float]]:
        """{bucket start: [sum of losses, count]} of the last `scored` tokens of the window that ends before `end`."""
        ids = self.tokens.window(end - length, end).to(self.head.device)
        first = length - scored - 1
        losses = self.head.losses(ids, first, advance).double()
        if self.bucket is None:
            return {"0": [losses.sum().item(), len(losses)]}
        return {str(start): [piece.sum().item(), len(piece)] for start, piece in _buckets(losses, self.bucket)}


def _buckets(losses: Tensor, bucket: int) -> list[tuple[int, Tensor]]:
    # losses[i] belongs to the token at position i + 1; position 0 has none, so the first bucket is one short.
    length = len(losses) + 1
    return [(start, losses[max(start - 1, 0) : start + bucket - 1]) for start in range(0, length, bucket)]


def _check(protocol: str, lengths: list[int], sizes: dict[str, int]) -> None:
    if protocol not in PROTOCOLS:
        raise UnknownName(
            f"unknown protocol {protocol!r}.{suggest(str(protocol), PROTOCOLS)} Protocols: {', '.join(PROTOCOLS)}"
        )
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise BadOption(f"{name} must be a positive integer, got {size!r}")
    if protocol == "last_k" and sizes["k"] >= lengths[0]:
        raise BadOption(
            f"k must be below the shortest length {lengths[0]}, got {sizes['k']}: lower k or drop short lengths"
        )
    if protocol == "strided" and sizes["stride"] > lengths[0]:
        raise BadOption(
            f"stride must be at most the shortest length {lengths[0]}, got {sizes['stride']}: else tokens stay unread"
        )
    if protocol == "by_position" and sizes["bucket"] < 2:
        raise BadOption(
            "bucket must be at least 2 tokens: position 0 is context only, so a bucket of 1 would start empty"
        )


def _options(protocol: str, bucket: int, k: int, windows: int, stride: int) -> dict[str, Any]:
    own: dict[str, dict[str, Any]] = {
        "by_position": {"bucket": bucket},
        "truncated": {},
        "strided": {"stride": stride, "windows": windows},
        "last_k": {"k": k, "windows": windows},
    }
    return own[protocol] | {"weighting": "token"}


def _tokens_needed(protocol: str, longest: int, k: int, windows: int, stride: int) -> int:
    # Disjoint scored pieces: each further window needs tokens of its own.
    return longest + (windows - 1) * {"last_k": k, "strided": stride}.get(protocol, 0)


def _plan(
    protocol: str, lengths: list[int], available: int, k: int, windows: int, stride: int
) -> dict[int, list[tuple[int, int]]]:
    """For every length its windows: the token index before which each ends, and how many of its last are scored."""
    if protocol == "last_k":
        last, room = lengths[-1], available - lengths[-1]
        ends = [last + room * index // max(windows - 1, 1) for index in range(windows)]
        return {length: [(end, k) for end in ends] for length in lengths}
    if protocol == "strided":
        total = _tokens_needed(protocol, lengths[-1], k, windows, stride)
        return {length: _strides(length, total, stride) for length in lengths}
    return {length: [(length, length - 1)] for length in lengths}


def _strides(length: int, total: int, stride: int) -> list[tuple[int, int]]:
    ends = [*range(length, total, stride), total]
    return [(length, length - 1)] + [(end, end - before) for before, end in pairwise(ends)]


def _rows(length: int, scored: list[dict[str, list[float]]], bucket: int) -> list[dict[str, Any]]:
    rows = []
    for start in sorted({int(key) for each in scored for key in each}):
        total = sum(each[str(start)][0] for each in scored)
        count = int(sum(each[str(start)][1] for each in scored))
        rows.append({"length": length, "start": start, "end": min(start + bucket, length), **_figures(total, count)})
    return rows


def _per_length(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in ("start", "end")} for row in rows]


def _figures(total: float, count: int) -> dict[str, Any]:
    """Loss and perplexity; null where they are not finite (JSON has no infinity), which a reader cannot overlook."""
    loss = total / count
    finite = math.isfinite(loss)
    return {
        "loss": loss if finite else None,
        "perplexity": math.exp(loss) if finite and loss < 700 else None,
        "n": count,
    }


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    losses = [row["loss"] for row in rows]
    if any(loss is None for loss in losses):
        return {"perplexity": None, "last": rows[-1]["perplexity"]}
    total = sum(row["loss"] * row["n"] for row in rows)
    return {**_figures(total, sum(row["n"] for row in rows)), "last": rows[-1]["perplexity"]}
