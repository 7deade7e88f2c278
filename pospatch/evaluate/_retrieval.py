"""What the retrieval tasks share: asking one question, a grid of lengths and depths, shares with their intervals."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pospatch.errors import BadOption, UnknownName, UnsupportedHost, suggest
from pospatch.evaluate._head import SlicedHead, evaluating, layer_list
from pospatch.evaluate._limits import refuse_too_long
from pospatch.evaluate._progress import bar
from pospatch.evaluate._result import Cells, Result, describe_model
from pospatch.evaluate._tokens import encode

__all__ = ["PROTOCOLS", "Builder", "Question", "Reader", "depth_list", "grid", "question_and_answer", "wilson"]

PROTOCOLS = {
    "forced": "one forward over prompt and answer: right when every token of it is the most likely one (greedy decoding)",
    "generate": "greedy decoding with the model's cache: right when the tokens that come out are the answer",
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt in token ids, the ids of its right answer, and the answer in words.

    among: what else could have been said from the same prompt, for tasks that choose one of several.
    """

    ids: list[int]
    answer: list[int]
    key: str
    among: tuple[str, ...] = ()


Builder = Callable[[int, float | None, random.Random], Question]


def grid(
    task: str,
    model: Any,
    tokenizer: Any,
    build: Builder,
    *,
    lengths: list[int],
    depths: list[float],
    trials: int,
    controls: int,
    protocol: str,
    options: dict[str, Any],
    seed: int,
    path: str | os.PathLike[str] | None,
    progress: bool,
    text: dict[str, Any] | None = None,
) -> Result:
    """Ask `trials` questions at every length and depth, `controls` at every length without what answers them.

    Every cell has its own seed, so a cell's questions do not depend on which others are asked.
    """
    _check(protocol, trials, controls)
    started = time.monotonic()
    refuse_too_long(model, lengths[-1])
    build(lengths[0], 0.5, random.Random(0))  # a prompt that has no room raises here, before the model is asked
    label, record = describe_model(model)
    options = {"depths": depths, "trials": trials, "controls": controls, **options}
    run = {"task": task, "protocol": protocol, "model": record, "options": options, "seed": seed, "text": text}
    cells, reader = Cells(path, run), Reader(model, tokenizer, protocol)
    plan: list[tuple[int, float | None, int]] = [(length, depth, trials) for length in lengths for depth in depths]
    plan += [(length, None, controls) for length in lengths if controls]
    names = {(length, depth, trial): _name(length, depth, trial) for length, depth, n in plan for trial in range(n)}
    left = [key for key, name in names.items() if name not in cells]
    with bar(f"{task}, {label}", len(left) * len(layer_list(reader.head.decoder)), progress) as advance:
        for length, depth, trial in left:
            name = names[length, depth, trial]
            cells[name] = reader.ask(build(length, depth, random.Random(f"{seed}/{name}")), advance)
    rows = [
        _row(length, depth, [cells[names[length, depth, trial]] for trial in range(n)]) for length, depth, n in plan
    ]
    return cells.conclude(
        started,
        label=label,
        lengths=lengths,
        rows=rows,
        n_scored_tokens=sum(answer["tokens"] for row in rows for answer in row["answers"]),
        summary=_summary(rows),
    )


class Reader:
    """Asks the model one question."""

    def __init__(self, model: Any, tokenizer: Any, protocol: str) -> None:
        self.model, self.tokenizer, self.protocol = model, tokenizer, protocol
        self.head = SlicedHead(model)

    def ask(self, question: Question, advance: Callable[[], None]) -> dict[str, Any]:
        """The right answer, what the model said, and whether they are the same."""
        speak = self._forced if self.protocol == "forced" else self._generated
        said = speak(question.ids, question.answer, advance)
        words = self.tokenizer.decode(said)
        answer = {"key": question.key, "said": words, "right": said == question.answer, "tokens": len(question.answer)}
        return answer if not question.among else {**answer, "listed": words.strip() in question.among}

    def _forced(self, ids: list[int], answer: list[int], advance: Callable[[], None]) -> list[int]:
        whole = self._tensor(ids + answer)
        output = self.head.hidden(whole, advance)
        end = whole.shape[1] - 1
        chosen: list[int] = self.head.logits(whole, output, end - len(answer), end)[0].argmax(-1).tolist()
        return chosen

    def _generated(self, ids: list[int], answer: list[int], advance: Callable[[], None]) -> list[int]:
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


def question_and_answer(tokenizer: Any, question: str, answer: str) -> tuple[list[int], list[int]]:
    """Ids of a question and of the answer that follows it after one space, such that the whole is one after the other.

    Raises:
        UnsupportedHost: the tokenizer merges the answer with the question wherever the space stands.
    """
    for asked, said in ((question + " ", answer), (question, " " + answer)):
        head, whole = encode(tokenizer, asked), encode(tokenizer, asked + said)
        if whole[: len(head)] == head and len(whole) > len(head):
            return head, whole[len(head) :]
    raise UnsupportedHost(
        f"{type(tokenizer).__name__} merges {answer!r} with the question before it, so its tokens cannot be told apart"
    )


def wilson(right: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval for a share, 95 % by default (Wilson 1927, JASA 22, 209).

    >>> [round(end, 3) for end in wilson(2, 2)]
    [0.342, 1.0]
    """
    share, scale = right / trials, 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def depth_list(depths: int | Sequence[float]) -> list[float]:
    """Depths from 0 (start) to 1 (end): those given, or n of them spread evenly inside.

    Raises:
        BadOption: neither a count nor shares from 0 to 1.
    """
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
    listed = {"listed": sum(answer["listed"] for answer in answers)} if "listed" in answers[0] else {}
    return {
        "length": length,
        "depth": depth,
        "control": depth is None,
        **share([answer["right"] for answer in answers]),
        **listed,
        "answers": answers,
    }


def share(rights: Sequence[bool]) -> dict[str, Any]:
    """Trials, how many were right, their share and its 95 % interval."""
    right, trials = sum(rights), len(rights)
    low, high = wilson(right, trials)
    return {"trials": trials, "right": right, "rate": right / trials, "low": round(low, 4), "high": round(high, 4)}


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for name, chosen in (("retrieved", False), ("control", True)):
        rights = [answer["right"] for row in rows if row["control"] is chosen for answer in row["answers"]]
        if rights:
            summary[name] = share(rights)
    return summary
