"""Passkey retrieval: a key of digits hidden in filler at a given depth of a context of a given length."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pospatch.errors import BadOption, UnsupportedHost
from pospatch.evaluate._plot import draw_heatmaps as draw
from pospatch.evaluate._result import Result
from pospatch.evaluate._retrieval import PROTOCOLS, Question, depth_list, grid
from pospatch.evaluate._tokens import encode, positive_lengths, prefix_of

__all__ = ["PROTOCOLS", "Prompt", "draw", "fill", "passkey", "sentences"]

# The wording of Mohtashami and Jaggi's landmark attention test (arXiv 2305.16300), which YaRN and others use.
_TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there.\n\n"
)
_FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
_NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key. "
_QUESTION = "\nWhat is the pass key? The pass key is"
_LEAST = 96


def passkey(
    model: Any,
    tokenizer: Any,
    *,
    lengths: int | Sequence[int],
    depths: int | Sequence[float] = 5,
    trials: int = 2,
    controls: int = 1,
    digits: int = 5,
    protocol: str = "forced",
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Result:
    """Share of keys that a causal model repeats, by context length and depth of the key.

    Every prompt has exactly the asked length in tokens, the answer's digits included. Chance is 1 in 90000 for five
    digits. Every cell has its own seed, so a cell's prompts do not depend on which others are measured.

    Args:
        model: any causal language model, patched or not.
        tokenizer: its tokenizer.
        lengths: context lengths in tokens, at least 96.
        depths: where the key stands, 0 at the start to 1 at the end; a number n means n depths spread evenly inside.
        trials: keys per length and depth.
        controls: prompts per length without the key (filler in its place): what is right there was not retrieved.
        digits: length of the key, 5 in the field's tables and 10 in its hard variant; from 1 to 18.
        protocol: `forced` or `generate`; see PROTOCOLS.
        seed: of the keys.
        path: where to write the result (.json, .md and .png) and, meanwhile, finished cells to go on from.
        progress: show a bar on stderr.

    Raises:
        UnknownName: no such protocol.
        BadOption: lengths, depths or counts out of range.
        UnsupportedHost: not a causal model, or a tokenizer that merges the key with the words before it.
    """
    wanted, places = positive_lengths(lengths, _LEAST), depth_list(depths)
    if not isinstance(digits, int) or isinstance(digits, bool) or not 1 <= digits <= 18:
        raise BadOption(f"digits must be an integer from 1 to 18, got {digits!r}")
    prompt = Prompt.for_tokenizer(tokenizer, digits)

    def build(length: int, depth: float | None, chance: random.Random) -> Question:
        key = str(chance.randrange(10 ** (digits - 1), 10**digits))
        ids, answer = prompt.build(length, depth, key)
        return Question(ids=ids, answer=answer, key=key)

    return grid(
        "passkey",
        model,
        tokenizer,
        build,
        lengths=wanted,
        depths=places,
        trials=trials,
        controls=controls,
        protocol=protocol,
        options={"digits": digits, "filler": _FILLER, "question": prompt.asked},
        seed=seed,
        path=path,
        progress=progress,
    )


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A passkey prompt in token ids, of an exact length; the filler is cut between sentences around the key."""

    tokenizer: Any
    prefix: list[int]
    filler: list[list[int]]
    asked: str
    space: str

    @classmethod
    def for_tokenizer(cls, tokenizer: Any, digits: int = 5) -> Prompt:
        """The wording whose answer this tokenizer keeps apart from the question.

        Raises:
            UnsupportedHost: it merges the key's first digit with the question, so no exact answer exists.
        """
        prefix, filler = prefix_of(tokenizer), sentences(tokenizer)
        keys = [("98765432" * 3)[start : start + digits] for start in range(3)]
        for asked, space in ((_QUESTION + " ", ""), (_QUESTION, " ")):
            prompt = cls(tokenizer=tokenizer, prefix=prefix, filler=filler, asked=asked, space=space)
            if all(prompt.separate(key) for key in keys):
                return prompt
        raise UnsupportedHost(
            f"{type(tokenizer).__name__} merges the key with the question before it, so the "
            "key's tokens cannot be told apart"
        )

    def answer(self, key: str) -> list[int]:
        """Ids of the key as it follows the question."""
        return encode(self.tokenizer, self.asked + self.space + key)[len(encode(self.tokenizer, self.asked)) :]

    def separate(self, key: str) -> bool:
        """Whether question and key are the question's own tokens followed by the key's."""
        question = encode(self.tokenizer, self.asked)
        whole = encode(self.tokenizer, self.asked + self.space + key)
        return whole[: len(question)] == question and len(whole) > len(question)

    def build(self, length: int, depth: float | None, key: str) -> tuple[list[int], list[int]]:
        """Prompt and answer, together exactly `length` tokens; depth None leaves the key out of the prompt."""
        head, question = [*self.prefix, *encode(self.tokenizer, _TASK)], encode(self.tokenizer, self.asked)
        needle = [] if depth is None else encode(self.tokenizer, _NEEDLE.format(key=key))
        answer = self.answer(key)
        room = length - len(head) - len(needle) - len(question) - len(answer)
        if room < 0:
            raise BadOption(f"a passkey prompt needs {length - room} tokens with this tokenizer, got length {length}")
        before, after = fill(self.filler, room, 0.0 if depth is None else depth)
        return [*head, *before, *needle, *after, *question], answer


def sentences(tokenizer: Any) -> list[list[int]]:
    """Ids of each sentence of the filler."""
    return [encode(tokenizer, sentence + ". ") for sentence in _FILLER.rstrip(". ").split(". ")]


def fill(filler: list[list[int]], room: int, depth: float) -> tuple[list[int], list[int]]:
    """Exactly `room` tokens of filler, in two parts that meet between sentences near `depth`."""
    # Whole sentences after the key; the one sentence that has to be cut to fit stands at the very beginning.
    rest: list[list[int]] = []
    size = 0
    while size < room:
        rest.insert(0, filler[-1 - len(rest) % len(filler)])
        size += len(rest[0])
    if size > room:
        rest[0] = rest[0][size - room :]
    before: list[int] = []
    while rest and len(before) + len(rest[0]) / 2 <= depth * room:
        before += rest.pop(0)
    return before, [token for sentence in rest for token in sentence]
