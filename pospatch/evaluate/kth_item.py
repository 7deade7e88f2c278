"""The k-th item of a list: nothing in the item says its number, so it is found by order alone."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any

from pospatch.errors import BadOption
from pospatch.evaluate._plot import draw_heatmaps as draw
from pospatch.evaluate._result import Result
from pospatch.evaluate._retrieval import PROTOCOLS, Question, depth_list, grid, question_and_answer
from pospatch.evaluate._tokens import encode, positive_lengths, prefix_of
from pospatch.evaluate.passkey import fill, sentences

__all__ = ["PROTOCOLS", "draw", "kth_item"]

_TASK = "Below is a list of items with other text between them. Remember the order of the items.\n"
_ITEM = "\nItem: {word}.\n"
_QUESTION = "\nQuestion: of the {items} items in the list, which is number {k}? Item number {k} is the"
_WORDS = (
    "apple", "river", "chair", "piano", "horse", "candle", "bridge", "garden", "mirror", "ticket",
    "window", "basket", "camera", "doctor", "engine", "finger", "guitar", "hammer", "island", "jacket",
    "kitchen", "ladder", "market", "needle", "orange", "pencil", "rabbit", "school", "table", "uncle",
    "valley", "wallet", "yellow", "zebra", "bottle", "circle", "dragon", "flower", "ghost", "lemon",
)  # fmt: skip
_LEAST = 96


def kth_item(
    model: Any,
    tokenizer: Any,
    *,
    lengths: int | Sequence[int],
    items: int = 10,
    depths: int | Sequence[float] = 5,
    trials: int = 4,
    controls: int = 2,
    protocol: str = "forced",
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Result:
    """Share of items that a causal model names by their number in a list spread over the context.

    Models tuned to find needles fail it, since a needle is found by its words and an item here only by its place
    (arXiv 2605.15514). The number of items stays the same at every length, so chance does: a model that knows the items
    and not their order is right once in `items`. Each row also counts answers that were some item of the list.

    Args:
        model: any causal language model, patched or not.
        tokenizer: its tokenizer.
        lengths: context lengths in tokens, at least 96.
        items: items in the list, from 2 to 40.
        depths: which item is asked for, 0 the first to 1 the last; a number n means n items spread evenly.
        trials: lists per length and item.
        controls: prompts per length without the list: what is right there was guessed.
        protocol: `forced` or `generate`; see PROTOCOLS.
        seed: of the lists.
        path: where to write the result (.json, .md and .png) and, meanwhile, finished cells to go on from.
        progress: show a bar on stderr.

    Raises:
        UnknownName: no such protocol.
        BadOption: lengths, depths or counts out of range.
        UnsupportedHost: not a causal model, or a tokenizer that merges the item with the words before it.
    """
    wanted, places = positive_lengths(lengths, _LEAST), depth_list(depths)
    if not isinstance(items, int) or isinstance(items, bool) or not 2 <= items <= len(_WORDS):
        raise BadOption(f"items must be an integer from 2 to {len(_WORDS)}, got {items!r}")
    prefix, filler, task = prefix_of(tokenizer), sentences(tokenizer), encode(tokenizer, _TASK)

    def build(length: int, depth: float | None, chance: random.Random) -> Question:
        words = chance.sample(_WORDS, items)
        k = chance.randrange(items) if depth is None else min(int(depth * items), items - 1)
        question = _QUESTION.format(items=items, k=k + 1)
        asked, answer = question_and_answer(tokenizer, question, words[k])
        entries = [encode(tokenizer, _ITEM.format(word=word)) for word in words] if depth is not None else []
        fixed = len(prefix) + len(task) + len(asked) + len(answer)
        room = length - fixed - sum(len(entry) for entry in entries)
        if room < 0:
            raise BadOption(
                f"a list of {items} items needs {length - room} tokens with this tokenizer, got length {length}: "
                "give fewer items or longer lengths"
            )
        return Question(ids=[*prefix, *task, *_spread(filler, entries, room), *asked], answer=answer, key=words[k],
                        among=tuple(words))  # fmt: skip

    return grid(
        "kth_item",
        model,
        tokenizer,
        build,
        lengths=wanted,
        depths=places,
        trials=trials,
        controls=controls,
        protocol=protocol,
        options={"items": items, "chance": 1 / items, "item": _ITEM, "question": _QUESTION},
        seed=seed,
        path=path,
        progress=progress,
    )


def _spread(filler: list[list[int]], entries: list[list[int]], room: int) -> list[int]:
    """The entries in their order with `room` tokens of filler in equal parts after each."""
    parts = max(len(entries), 1)
    out: list[int] = []
    for index in range(parts):
        share = room * (index + 1) // parts - room * index // parts
        out += [*(entries[index] if entries else []), *fill(filler, share, 0.0)[1]]
    return out
