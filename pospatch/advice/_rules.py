"""The rules: which methods, with which options, for which mechanism and how far."""

from __future__ import annotations

import math
from typing import Any

from pospatch import registry
from pospatch.advice._advice import Suggestion
from pospatch.advice._bounds import self_extend_group
from pospatch.advice._facts import Facts

__all__ = ["suggestions"]

_UNTRAINED = 4  # times the trained length that YaRN reads without training at a small loss
_YARN = 32  # times the trained length that the YaRN paper shows, after some hundred steps
_GROUPED = 8  # times, where positions are grouped without training (LongEmbed)


def suggestions(facts: Facts, length: int) -> tuple[Suggestion, ...]:
    """Methods for the length, the best first; empty where the model reads it as it is."""
    factor = facts.factor(length)
    if factor is None or factor <= 1 or _sees_no_further(facts):
        return ()
    rules = {"rotary": _rotary, "learned table": _table, "relative bias": _bias, "other": lambda *_: []}
    return tuple(rules[facts.mechanism](facts, length, factor))


def _sees_no_further(facts: Facts) -> bool:
    """Whether sliding windows keep every distance within what was trained."""
    if facts.mechanism != "rotary" or facts.trained is None:
        return False
    return all(window is not None and window <= facts.trained for window in facts.windows)


def _rotary(facts: Facts, length: int, factor: float) -> list[Suggestion]:
    options: dict[str, Any] = {"factor": factor}
    if factor <= _UNTRAINED:
        why = f"{factor:g} x is within the {_UNTRAINED} x up to which YaRN needs no training (rule of thumb)"
    elif factor <= _YARN:
        why = (
            f"{factor:g} x is within YaRN's {_YARN} x (arXiv 2309.00071), which needs some hundred steps of tuning beyond "
            f"{_UNTRAINED} x"
        )
    else:
        why = f"{factor:g} x is beyond the {_YARN} x that YaRN was shown for"
    yarn = _suggest("yarn", options, why, "its frequencies are fixed: plain transformers, vLLM and llama.cpp read the checkpoint",
                    training=factor > _UNTRAINED)  # fmt: skip
    extend = _self_extend(facts, length) if facts.causal else None
    chunks = _suggest("dca", {}, "no distance leaves the trained range at any length (arXiv 2402.17463)",
                      "acts inside attention: pospatch must be there at inference") if facts.causal else None  # fmt: skip
    searched = _suggest("longrope", {"factor": factor},
                        f"a divisor for each pair, found with `pospatch search --length {length}` (arXiv 2402.13753)",
                        training=factor > _GROUPED)  # fmt: skip
    inside = [each for each in (extend, chunks) if each is not None]
    if factor <= _UNTRAINED:
        return [yarn, *inside, *([searched] if facts.causal else [])]
    if factor <= _YARN:
        return [*inside, yarn, *([searched] if facts.causal else [])]
    return [*inside, searched, yarn] if facts.causal else [yarn]


def _self_extend(facts: Facts, length: int) -> Suggestion | None:
    assert facts.trained is not None
    window = max(min(1024, facts.trained // 4), 1)
    group = self_extend_group(facts.trained, length, window)
    if group is None:
        return None
    farthest = window + (length - window) / group
    return _suggest(
        "self_extend",
        {"group_size": group, "window": window},
        f"the smallest group for which the farthest grouped distance, {math.ceil(farthest)}, stays below 2/3 of the "
        f"{facts.trained} trained ones (arXiv 2401.01325); near tokens keep their distance",
        "acts inside attention: pospatch must be there at inference",
    )


def _table(facts: Facts, length: int, factor: float) -> list[Suggestion]:
    group = math.ceil(factor)
    found = []
    if length <= (facts.trained or 0) ** 2 // 2:
        found.append(_suggest("hierarchical", {}, f"{facts.trained} rows make new ones by pairs, old positions stay as they are",
                              "a start that training improves much"))  # fmt: skip
    if group <= _GROUPED:
        found.append(_suggest("grouped", {"group_size": group},
                              f"{group} neighbours share a row, so no row is new (LongEmbed, arXiv 2404.12096)",
                              "order inside a group is lost, short texts change too"))  # fmt: skip
    found.append(_suggest("learned", {"length": length}, "a longer table from the old one, to be tuned", training=True))
    graft = (
        ("alibi", "reads lengths it was never tuned on")
        if facts.causal
        else ("rope", "distil it from the model as it is")
    )
    found.append(_suggest(graft[0], {}, f"a relative encoding instead of the table: {graft[1]}", training=True))
    return found


def _bias(facts: Facts, length: int, factor: float) -> list[Suggestion]:
    return [_suggest("logn", {}, "a relative bias reads any length; scaling q by ln(n) / ln(trained) keeps attention from "
                     "spreading as keys become many", "measure first whether the model needs it at all")]  # fmt: skip


def _suggest(name: str, options: dict[str, Any], *why: str, training: bool = False) -> Suggestion:
    method = registry.build(name, **options)  # an option that the method does not have shows here
    needs = "training" if training or method.needs == "training" else "nothing"
    return Suggestion(methods=(name,), options=options, needs=needs, why=why)
