"""How long the sequences of a step are: as they come, or cut into shorter ones with as many tokens in all."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Lengths"]


_NONE = torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class Lengths:
    """The length of each step's sequences.

    Args:
        warmup: lengths at first, each for `warmup_steps` steps; then sequences are whole.
        warmup_steps: steps at each of them.
        mix: lengths one of which is drawn for every step; what is drawn hangs on `seed` and the step alone.
        seed: of the draws.
        head, tail: tokens that stand around each sequence, and so around each piece of one; empty: the text's own stand there.
    """

    warmup: Sequence[int] = ()
    warmup_steps: int = 0
    mix: Sequence[int] = ()
    seed: int = 0
    head: Tensor = _NONE
    tail: Tensor = _NONE

    def at(self, step: int) -> int | None:
        """The length at a step; None: whole."""
        if self.mix:
            return self.drawn(step)
        stage = step // self.warmup_steps if self.warmup_steps else len(self.warmup)
        return self.warmup[stage] if stage < len(self.warmup) else None

    def drawn(self, number: int) -> int:
        """One of the mix, which hangs on the seed and the number alone."""
        return random.Random(f"{self.seed}/{number}").choice(self.mix)

    def cut(self, batch: dict[str, Any], length: int) -> dict[str, Any]:
        """The same tokens as more and shorter sequences of `length` tokens, each in its frame."""
        found = {name: value.reshape(-1, length) for name, value in batch.items()}
        for name in ("input_ids", "labels"):
            if name in found:
                found[name] = self._framed(found[name])
        return found

    def _framed(self, ids: Tensor) -> Tensor:
        framed = ids.clone()
        framed[:, : len(self.head)] = self.head.to(ids.device)
        framed[:, ids.shape[1] - len(self.tail) :] = self.tail.to(ids.device)
        return framed
