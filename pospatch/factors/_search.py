"""The search on a model: candidates go on as `longrope`, their loss at needles is kept, the model is left as it was."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import Any

import torch

from pospatch import registry
from pospatch.errors import AlreadyPatched, BadOption, UnsupportedHost
from pospatch.evaluate._head import SlicedHead
from pospatch.evaluate._limits import refuse_too_long
from pospatch.evaluate._progress import bar
from pospatch.evaluate._result import Cells, describe_model, versions
from pospatch.evaluate._retrieval import Question
from pospatch.evaluate._tokens import text_tokens
from pospatch.factors._evolution import Candidate, Evolution, monotone
from pospatch.factors._found import Found
from pospatch.factors._needles import answer_loss, questions

__all__ = ["search"]

_ROOM = 1.25  # divisors go up to this many times the factor, as in LongRoPE
_LAST = 2  # losses after the last candidate: what was found, and yarn, at needles that the search did not see


def search(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    length: int,
    needles: int = 8,
    evolution: Evolution | None = None,
    evaluations: int | None = None,
    minutes: float | None = None,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Found:
    """Divisors of the rotary frequencies with the smallest loss at needles in texts of `length` tokens.

    The first generation holds the divisors of linear, ntk and yarn and changes of them; divisors never fall from fast to
    slow pairs. The losses of these three, and losses on needles that the search did not see, stand beside the result. An
    interrupted search, or one whose budget ended, goes on where it was when it is called again with the same `path`.

    Source: LongRoPE, arXiv 2402.13753 (the evolution); LongRoPE2, arXiv 2502.20082 (perplexity at needles).

    Args:
        model: an unpatched causal language model with one rotary encoding.
        tokenizer: its tokenizer.
        text: the haystack (see `pospatch.assets.text`).
        length: wanted length in tokens, above the trained one.
        needles: questions a candidate is asked, their needles at depths spread evenly.
        evolution: sizes and seed; None is the paper's (64 candidates, 40 generations of 32 children).
        evaluations: candidates measured in this call at most; None is no limit.
        minutes: time of this call at most. A candidate is begun only where there is time for it and for the two losses that a
            result ends with, going by what took longest so far; what was begun is finished. None is no limit.
        path: where to write the result (.json and .png) and, meanwhile, the losses to go on from.
        progress: show a bar on stderr.

    Raises:
        BadOption: lengths or counts out of range, empty or short text, a budget too small for a first candidate.
        UnsupportedHost: no rotary encoding, or several.
        AlreadyPatched: the model carries a patch.
    """
    import pospatch

    plan = evolution or Evolution()
    began = time.monotonic()
    trained = _check(model, length, needles, evaluations, minutes)
    factor = math.ceil(100 * length / trained) / 100
    tokens = text_tokens(tokenizer, text, length)
    refuse_too_long(model, length)
    _, record = describe_model(model)
    asked, unseen = (
        questions(tokenizer, tokens, length, needles, f"{plan.seed}/{part}") for part in ("search", "held out")
    )
    run = {"model": record, "text": tokens.record, "length": length, "needles": needles, "plan": vars(plan)}
    cells = Cells(path, run)
    end = math.inf if minutes is None else began + 60 * minutes
    seeds = _seeds(model, factor)
    scorer = _Scorer(model, factor, len(seeds["ntk"]), asked, cells, evaluations, end)
    total = plan.population + plan.generations * (plan.mutations + plan.crossovers)
    total = total if evaluations is None else min(total, len(cells.done) + evaluations)
    try:
        with bar(f"search, factor {factor:g}", 1 + total + _LAST, progress) as advance:
            scorer.advance = advance
            before = scorer.loss("unpatched, unseen", unseen, lambda: None)
            population, complete = plan.run(list(seeds.values()), _ROOM * factor, scorer)
            if not population.losses:
                raise BadOption(
                    "the budget ended before the first candidate was measured: give more evaluations or minutes (a loss took "
                    f"{scorer.longest / 60:.2g} minutes, and a first result needs {2 + _LAST} of them)"
                )
            best, loss = population.best(1)[0]
            after = scorer.loss(f"{_name(best)}, unseen", unseen, lambda: scorer.put_on(best))
            yarn = scorer.loss("yarn, unseen", unseen, lambda: _put_on_alone(model, "yarn", factor))
    finally:
        if pospatch.inspect(model).stack:
            pospatch.remove(model)
    known = {name: population.losses.get(monotone(each, plan.step, _ROOM * factor)) for name, each in seeds.items()}
    found = Found(
        factor=factor,
        short_factor=[1.0] * len(best),
        long_factor=list(best),
        length=length,
        losses={"found": loss, **known},
        held_out={"unpatched": before, "yarn": yarn, "found": after},
        history=population.history or [loss],
        evaluations=len(population.losses),
        complete=complete,
        record={
            "model": record,
            "text": tokens.record,
            "needles": needles,
            "evolution": vars(plan),
            "versions": versions(),
        },
    )
    if path is not None:
        found.save(path)
    if complete:
        cells.finish()
    return found


class _Scorer:
    """The loss of a candidate, kept on disk; None once the budget is spent.

    longest: seconds of the slowest loss of this call.
    """

    def __init__(
        self,
        model: Any,
        factor: float,
        half: int,
        asked: list[Question],
        cells: Cells,
        most: int | None,
        end: float,
    ) -> None:
        self.model, self.factor, self.half, self.asked, self.cells = model, factor, half, asked, cells
        self.left = math.inf if most is None else most
        self.end, self.longest = end, 0.0
        self.advance: Callable[[], None] = lambda: None

    def __call__(self, candidate: Candidate) -> float | None:
        name = _name(candidate)
        if name not in self.cells:
            if self.left <= 0 or not self._in_time():
                return None
            self.left -= 1
        loss = self.loss(name, self.asked, lambda: self.put_on(candidate))
        return math.inf if loss is None else loss

    def _in_time(self) -> bool:
        """Is there time for one more candidate, and for what comes after the last one?"""
        return time.monotonic() + (1 + _LAST) * self.longest < self.end

    def loss(self, name: str, asked: list[Question], put_on: Callable[[], None]) -> float | None:
        """The loss of what `put_on` puts on, None where it is not finite; one that is known by its name is not measured again."""
        if name not in self.cells:
            begun = time.monotonic()
            put_on()
            self.cells[name] = _finite(answer_loss(SlicedHead(self.model), asked))
            self.longest = max(self.longest, time.monotonic() - begun)
        self.advance()
        found: float | None = self.cells[name]
        return found

    def put_on(self, candidate: Candidate) -> None:
        """Apply the candidate; one that stands is replaced."""
        import pospatch

        ones = (1.0,) * self.half
        pospatch.apply(self.model, "longrope", factor=self.factor, short_factor=ones, long_factor=candidate)


def _name(candidate: Candidate) -> str:
    """What the loss of a candidate is kept as."""
    return " ".join(f"{each:g}" for each in candidate)


def _put_on_alone(model: Any, method: str, factor: float) -> None:
    """Apply a method in the place of whatever stands."""
    import pospatch

    if pospatch.inspect(model).stack:
        pospatch.remove(model)
    pospatch.apply(model, method, factor=factor)


def _check(model: Any, length: int, needles: int, evaluations: int | None, minutes: float | None) -> int:
    from pospatch.api import patch_of
    from pospatch.inspection import inspect

    for name, value in (("length", length), ("needles", needles), ("evaluations", evaluations)):
        if value is None and name == "evaluations":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadOption(f"{name} must be a positive integer, got {value!r}")
    if minutes is not None and (isinstance(minutes, bool) or not isinstance(minutes, int | float) or not minutes > 0):
        raise BadOption(f"minutes must be above 0, got {minutes!r}")
    if patch_of(model) is not None:
        raise AlreadyPatched("search begins with the unpatched model: call pospatch.remove(model) first")
    trained = inspect(model).trained_length
    if trained is None or length <= trained:
        raise BadOption(
            f"length must be above the trained length of {trained} tokens, got {length}: nothing is to be found"
        )
    return trained


def _seeds(model: Any, factor: float) -> dict[str, Candidate]:
    """Divisors of the methods that the search begins with; yarn's without its amplitude."""
    import pospatch
    from pospatch.api import patch_of

    pospatch.apply(model, "longrope", factor=factor)
    try:
        patch = patch_of(model)
        assert patch is not None
        rotations = [
            (geometry, geometry.rotation) for geometry in patch.layers.values() if geometry.rotation is not None
        ]
    finally:
        pospatch.remove(model)
    geometry, rotation = rotations[0]
    if any(not torch.equal(rotation.inv_freq, other.inv_freq) for _, other in rotations):
        raise UnsupportedHost(
            "layers of this model rotate with different frequencies; one list of divisors cannot suit all"
        )
    found = {}
    for name in ("linear", "ntk", "yarn"):
        frequencies, _ = registry.build(name, factor=factor).frequencies(geometry)  # type: ignore[attr-defined]
        found[name] = tuple((rotation.inv_freq.double().cpu() / frequencies.double().cpu()).tolist())
    return found


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None
