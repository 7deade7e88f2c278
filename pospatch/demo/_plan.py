"""What the two forms of the demo measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["FULL", "QUICK", "YARN", "Plan"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One form of the demo; lengths in tokens, minutes on 2 idle cores.

    Args:
        minutes: what all of it takes.
        text: read by the perplexity and the fine-tuning steps.
        length: read in one pass for the perplexity by position.
        bucket: positions averaged in one point of that curve.
        methods: measured beside the model as it is.
        key_length: context of the passkey.
        key_methods: those of `methods` that are asked for the passkey.
        depths: where the key stands, 0 at the start to 1 at the end.
        steps: of the fine-tuning run.
        sequence_length: of a training sequence.
        base_length, target_length: context in front of the held-out tokens measured before and after fine-tuning.

    `FULL` fine-tunes exactly as the recipe's YAML file says.
    """

    minutes: float
    text: str = "kjv"
    length: int
    bucket: int
    methods: tuple[tuple[str, dict[str, Any]], ...]
    key_length: int
    key_methods: tuple[str, ...]
    depths: tuple[float, ...]
    steps: int
    sequence_length: int
    base_length: int
    target_length: int


YARN = ("yarn", {"factor": 2.0})
QUICK = Plan(
    minutes=4.7,
    length=11776,
    bucket=512,
    methods=(YARN,),
    key_length=9728,
    key_methods=("yarn",),
    depths=(0.05,),
    steps=3,
    sequence_length=1024,
    base_length=512,
    target_length=2048,
)
FULL = Plan(
    minutes=15,
    length=16384,
    bucket=1024,
    methods=(YARN, ("dynamic_ntk", {"factor": 2.0})),
    key_length=9728,
    key_methods=("yarn",),
    depths=(0.05, 0.5),
    steps=12,
    sequence_length=2048,
    base_length=2048,
    target_length=16384,
)
