"""Passkey retrieval: a five-digit key hidden in filler at a given depth of a context of a given length."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pospatch.errors import BadOption, UnknownName, UnsupportedHost, suggest
from pospatch.evaluate._head import SlicedHead, evaluating, layer_list
from pospatch.evaluate._progress import bar
from pospatch.evaluate._result import Cells, Result, describe_model
from pospatch.evaluate._tokens import encode, positive_lengths

__all__ = ["PROTOCOLS", "Prompt", "passkey", "wilson"]

PROTOCOLS = {
    "forced": "one forward over prompt and key: right when every digit is the most likely one (equals greedy decoding)",
    "generate": "greedy decoding with the model's cache: right when the digits that come out are the key",
}
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
    protocol: str = "forced",
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Result:
    """Share of keys that a causal model repeats, by context length and depth of the key.

    Every prompt has exactly the asked length in tokens, the answer's digits included. Chance is 1 in 90000. Every cell
    has its own seed, so a cell's prompts do not depend on which others are measured.

    Args:
        model: any causal language model, patched or not.
        tokenizer: its tokenizer.
        lengths: context lengths in tokens, at least 96.
        depths: where the key stands, 0 at the start to 1 at the end; a number n means n depths spread evenly inside.
        trials: keys per length and depth.
        controls: prompts per length without the key (filler in its place): what is right there was not retrieved.
        protocol: `forced` or `generate`; see PROTOCOLS.
        seed: of the keys.
        path: where to write the result (.json and .png) and, meanwhile, finished cells to go on from.
        progress: show a bar on stderr.

    Raises:
        UnknownName: no such protocol.
        BadOption: lengths, depths or counts out of range.
        UnsupportedHost: not a causal model, or a tokenizer that merges the key with the words before it.
    """
    wanted, places = positive_lengths(lengths, _LEAST), _depths(depths)
    _check(protocol, trials, controls)
    started = time.monotonic()
    prompt = Prompt.for_tokenizer(tokenizer, wanted[0])
    label, record = describe_model(model)
    options = {"depths": places, "trials": trials, "controls": controls, "filler": _FILLER, "question": prompt.asked}
    run = {"task": "passkey", "protocol": protocol, "model": record, "options": options, "seed": seed}
    cells, reader = Cells(path, run), _Reader(model, tokenizer, protocol)
    plan: list[tuple[int, float | None, int]] = [(length, depth, trials) for length in wanted for depth in places]
    plan += [(length, None, controls) for length in wanted if controls]
    steps = sum(count for *_, count in plan) * len(layer_list(reader.head.decoder))
    with bar(f"passkey, {label}", steps, progress) as advance:
        for length, depth, count in plan:
            for trial in range(count):
                cell = _name(length, depth, trial)
                if cell not in cells:
                    cells[cell] = reader.ask(prompt, length, depth, random.Random(f"{seed}/{cell}"), advance)
    rows = [
        _row(length, depth, [cells[_name(length, depth, trial)] for trial in range(count)])
        for length, depth, count in plan
    ]
    result = Result(
        task="passkey",
        protocol=protocol,
        label=label,
        model=record,
        options=options,
        lengths=wanted,
        rows=rows,
        n_scored_tokens=sum(row["trials"] for row in rows) * len(prompt.answer("0" * 5)),
        summary=_summary(rows),
        seed=seed,
        seconds=round(time.monotonic() - started, 1),
    )
    if path is not None:
        result.save(path)
    cells.finish()
    return result


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A passkey prompt in token ids, of an exact length; the filler is cut between sentences around the key."""

    tokenizer: Any
    prefix: list[int]
    filler: list[list[int]]
    asked: str
    space: str

    @classmethod
    def for_tokenizer(cls, tokenizer: Any, shortest: int) -> Prompt:
        """The wording whose answer this tokenizer keeps apart from the question.

        Raises:
            UnsupportedHost: it merges the key's first digit with the question, so no exact answer exists.
            BadOption: the shortest length has no room for the prompt.
        """
        empty = list(tokenizer("", verbose=False)["input_ids"])
        prefix = empty[:1] if empty and empty[0] == getattr(tokenizer, "bos_token_id", None) else []
        filler = [encode(tokenizer, sentence + ". ") for sentence in _FILLER.rstrip(". ").split(". ")]
        for asked, space in ((_QUESTION + " ", ""), (_QUESTION, " ")):
            prompt = cls(tokenizer=tokenizer, prefix=prefix, filler=filler, asked=asked, space=space)
            if all(prompt.separate(key) for key in ("10000", "98765", "12345")):
                prompt.build(shortest, 0.5, "98765")
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
        before, after = self._fill(room, 0.0 if depth is None else depth)
        return [*head, *before, *needle, *after, *question], answer

    def _fill(self, room: int, depth: float) -> tuple[list[int], list[int]]:
        # Whole sentences after the key; the one sentence that has to be cut to fit stands at the very beginning.
        sentences: list[list[int]] = []
        size = 0
        while size < room:
            sentences.insert(0, self.filler[-1 - len(sentences) % len(self.filler)])
            size += len(sentences[0])
        if size > room:
            sentences[0] = sentences[0][size - room :]
        before: list[int] = []
        rest = list(sentences)
        while rest and len(before) + len(rest[0]) / 2 <= depth * room:
            before += rest.pop(0)
        return before, [token for sentence in rest for token in sentence]


class _Reader:
    """Asks the model one prompt."""

    def __init__(self, model: Any, tokenizer: Any, protocol: str) -> None:
        self.model, self.tokenizer, self.protocol = model, tokenizer, protocol
        self.head = SlicedHead(model)

    def ask(
        self, prompt: Prompt, length: int, depth: float | None, chance: random.Random, advance: Any
    ) -> dict[str, Any]:
        """Key, what the model said, and whether that is the key."""
        key = str(chance.randrange(10000, 100000))
        ids, answer = prompt.build(length, depth, key)
        said = (self._forced if self.protocol == "forced" else self._generated)(ids, answer, advance)
        return {"key": key, "said": self.tokenizer.decode(said), "right": said == answer}

    def _forced(self, ids: list[int], answer: list[int], advance: Any) -> list[int]:
        whole = self._tensor(ids + answer)
        output = self.head.hidden(whole, advance)
        end = whole.shape[1] - 1
        chosen: list[int] = self.head.logits(whole, output, end - len(answer), end)[0].argmax(-1).tolist()
        return chosen

    def _generated(self, ids: list[int], answer: list[int], advance: Any) -> list[int]:
        whole = self._tensor(ids)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        with evaluating(self.model):
            out = self.model.generate(
                whole,
                attention_mask=torch.ones_like(whole),
                max_new_tokens=len(answer),
                do_sample=False,
                pad_token_id=pad,
            )
        for _ in layer_list(self.head.decoder):
            advance()
        said: list[int] = out[0, whole.shape[1] :].tolist()
        return said

    def _tensor(self, ids: list[int]) -> Tensor:
        return torch.tensor([ids], device=self.head.device)


def wilson(right: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval for a share, 95 % by default (Wilson 1927, JASA 22, 209).

    >>> [round(end, 3) for end in wilson(2, 2)]
    [0.342, 1.0]
    """
    share, scale = right / trials, 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def _depths(depths: int | Sequence[float]) -> list[float]:
    if isinstance(depths, int) and not isinstance(depths, bool):
        if depths < 1:
            raise BadOption(f"the number of depths must be at least 1, got {depths}")
        return [round((index + 0.5) / depths, 4) for index in range(depths)]
    if isinstance(depths, (str, bool)) or not isinstance(depths, Sequence):
        raise BadOption(f"depths must be a count or a list of shares from 0 to 1, got {depths!r}")
    places = [float(depth) for depth in depths]
    if not places or not all(0 <= depth <= 1 for depth in places):
        raise BadOption(f"depths must be shares from 0 (start) to 1 (end), got {list(depths)}")
    return sorted(set(places))


def _check(protocol: str, trials: int, controls: int) -> None:
    if protocol not in PROTOCOLS:
        raise UnknownName(
            f"unknown protocol {protocol!r}.{suggest(str(protocol), PROTOCOLS)} Protocols: {', '.join(PROTOCOLS)}"
        )
    for name, count, least in (("trials", trials, 1), ("controls", controls, 0)):
        if not isinstance(count, int) or isinstance(count, bool) or count < least:
            raise BadOption(f"{name} must be an integer of at least {least}, got {count!r}")


def _name(length: int, depth: float | None, trial: int) -> str:
    return f"{length}/{'control' if depth is None else depth}/{trial}"


def _row(length: int, depth: float | None, answers: list[dict[str, Any]]) -> dict[str, Any]:
    right = sum(answer["right"] for answer in answers)
    low, high = wilson(right, len(answers))
    return {
        "length": length,
        "depth": depth,
        "control": depth is None,
        "trials": len(answers),
        "right": right,
        "rate": right / len(answers),
        "low": round(low, 4),
        "high": round(high, 4),
        "answers": answers,
    }


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for name, chosen in (("retrieved", False), ("control", True)):
        picked = [row for row in rows if row["control"] is chosen]
        trials, right = sum(row["trials"] for row in picked), sum(row["right"] for row in picked)
        if trials:
            low, high = wilson(right, trials)
            summary[name] = {"rate": right / trials, "low": round(low, 4), "high": round(high, 4), "trials": trials}
    return summary
