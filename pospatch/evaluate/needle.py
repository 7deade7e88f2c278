"""Needle in a haystack: one fact inside a real text, asked for at the end; a grid of context length and depth."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any

from pospatch.errors import BadOption
from pospatch.evaluate._plot import draw_heatmaps as draw
from pospatch.evaluate._result import Result
from pospatch.evaluate._retrieval import PROTOCOLS, Builder, Question, depth_list, grid, question_and_answer
from pospatch.evaluate._tokens import Tokens, encode, positive_lengths, text_tokens

__all__ = ["PROTOCOLS", "builder", "draw", "needle"]

_NEEDLE = "\nThe secret number of {name} is {number}.\n"
_QUESTION = "\n\nWhat is the secret number of {name}? The secret number of {name} is"
_NAMES = (
    "Lisbon", "Nairobi", "Oslo", "Hanoi", "Quito", "Dublin", "Cairo", "Manila", "Havana", "Vienna",
    "Athens", "Lima", "Seoul", "Tunis", "Riga", "Accra",
)  # fmt: skip
_LEAST = 96


def needle(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    lengths: int | Sequence[int],
    depths: int | Sequence[float] = 10,
    trials: int = 2,
    controls: int = 1,
    distractors: int = 0,
    digits: int = 7,
    protocol: str = "forced",
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Result:
    """Share of numbers that a causal model finds inside `text`, by context length and depth.

    The haystack is the beginning of the text, the needle stands after the sentence that ends nearest to its depth, and
    every prompt has exactly the asked length in tokens, the answer included. Haystacks of a real text are harder than
    the repeated filler of `passkey`, so the two numbers must not share a table.

    Args:
        model: any causal language model, patched or not.
        tokenizer: its tokenizer.
        text: the haystack (see `pospatch.assets.text`), at least as long as the longest length.
        lengths: context lengths in tokens, at least 96.
        depths: where the needle stands, 0 at the start to 1 at the end; a number n means n depths spread evenly inside.
        trials: needles per length and depth, each with its own name and number.
        controls: prompts per length without the needle: what is right there was not retrieved.
        distractors: further needles with other names and numbers at random depths, 0 to 15.
        digits: length of the number, from 1 to 18; chance is 1 in 9 million for seven.
        protocol: `forced` or `generate`; see PROTOCOLS.
        seed: of names, numbers and the distractors' places.
        path: where to write the result (.json, .md and .png) and, meanwhile, finished cells to go on from.
        progress: show a bar on stderr.

    Raises:
        UnknownName: no such protocol.
        BadOption: empty or short text; lengths, depths or counts out of range.
        UnsupportedHost: not a causal model, or a tokenizer that merges the number with the words before it.
    """
    wanted, places = positive_lengths(lengths, _LEAST), depth_list(depths)
    for name, value, least, most in (("digits", digits, 1, 18), ("distractors", distractors, 0, len(_NAMES) - 1)):
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise BadOption(f"{name} must be an integer from {least} to {most}, got {value!r}")
    tokens = text_tokens(tokenizer, text, wanted[-1])
    build = builder(tokenizer, tokens, distractors, digits)
    return grid(
        "needle",
        model,
        tokenizer,
        build,
        lengths=wanted,
        depths=places,
        trials=trials,
        controls=controls,
        protocol=protocol,
        options={"distractors": distractors, "digits": digits, "needle": _NEEDLE, "question": _QUESTION},
        seed=seed,
        path=path,
        progress=progress,
        text=tokens.record,
    )


def builder(tokenizer: Any, tokens: Tokens, distractors: int, digits: int) -> Builder:
    """A function that asks for one number hidden in the beginning of the text."""
    hay = tokens.ids.tolist()
    ends = _sentence_ends(tokenizer, hay)

    def build(length: int, depth: float | None, chance: random.Random) -> Question:
        names = chance.sample(_NAMES, 1 + distractors)
        numbers = [str(chance.randrange(10 ** (digits - 1), 10**digits)) for _ in names]
        pairs = zip(names, numbers, strict=True)
        facts = [encode(tokenizer, _NEEDLE.format(name=name, number=number)) for name, number in pairs]
        where = [depth if depth is not None else 0.0, *(chance.random() for _ in range(distractors))]
        hidden = list(zip(where, facts, strict=True))[0 if depth is not None else 1 :]
        asked, answer = question_and_answer(tokenizer, _QUESTION.format(name=names[0]), numbers[0])
        fixed = len(tokens.prefix) + len(asked) + len(answer)
        room = length - fixed - sum(len(fact) for _, fact in hidden)
        if room < 16:
            raise BadOption(
                f"a needle prompt needs {length - room + 16} tokens with this tokenizer, got length {length}"
            )
        ids = [*tokens.prefix, *_hide(hay[:room], ends, hidden), *asked]
        return Question(ids=ids, answer=answer, key=numbers[0])

    return build


def _sentence_ends(tokenizer: Any, ids: list[int]) -> list[int]:
    """Indices after which a sentence or line has ended."""
    closing = {each for each in set(ids) if tokenizer.decode([each]).rstrip(" ").endswith((".", "!", "?", "\n"))}
    return [index + 1 for index, each in enumerate(ids) if each in closing]


def _hide(hay: list[int], ends: list[int], hidden: list[tuple[float, list[int]]]) -> list[int]:
    """The haystack with each fact after the sentence that ends nearest to its depth."""
    cuts = [0, *(end for end in ends if end < len(hay)), len(hay)]
    placed = sorted(((min(cuts, key=lambda cut: abs(cut - depth * len(hay))), fact) for depth, fact in hidden))
    out, done = [], 0
    for cut, fact in placed:
        out += [*hay[done:cut], *fact]
        done = cut
    return out + hay[done:]
