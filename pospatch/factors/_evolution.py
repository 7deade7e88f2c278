"""The evolution: pure functions of scores and one source of chance, so that a resumed run repeats itself exactly."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pospatch.errors import BadOption

__all__ = ["Candidate", "Evolution", "Population", "monotone"]

Candidate = tuple[float, ...]
_SPREAD = 0.1  # standard deviation of a changed divisor's logarithm


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """Sizes of LongRoPE's search (arXiv 2402.13753, section 3.3 and appendix A.2).

    Args:
        population: candidates of the first generation.
        generations: generations after the first.
        mutations: new candidates a generation with some divisors changed.
        crossovers: new candidates a generation mixed from two parents.
        parents: best candidates that stay and have children.
        step: divisors are multiples of it.
        change: share of the divisors that a mutation changes, from above 0 to 1.
        seed: of all chance.
    """

    population: int = 64
    generations: int = 40
    mutations: int = 16
    crossovers: int = 16
    parents: int = 32
    step: float = 0.01
    change: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("population", 2), ("generations", 0), ("mutations", 0), ("crossovers", 0), ("parents", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise BadOption(f"{name} must be an integer of at least {least}, got {value!r}")
        if self.generations and not self.mutations + self.crossovers:
            raise BadOption("mutations and crossovers are both 0, so no generation would bring anything new")
        if not 0 < self.change <= 1 or not 0 < self.step < 1:
            raise BadOption(f"change must be above 0 to 1 and step between 0 and 1, got {self.change} and {self.step}")

    def run(
        self, seeds: Sequence[Candidate], most: float, score: Callable[[Candidate], float | None]
    ) -> tuple[Population, bool]:
        """Evolve from `seeds`, divisors from 1 to `most`; `score` gives the loss, or None where the budget is spent.

        Returns the population and whether all generations were run.
        """
        chance = random.Random(self.seed)
        alive = Population()
        first = list(dict.fromkeys(monotone(each, self.step, most) for each in seeds))
        while len(first) < self.population:
            first.append(self._mutated(chance.choice(first), most, chance))
        for generation in range(self.generations + 1):
            new = first if generation == 0 else self._children(alive.best(self.parents), most, chance)
            for candidate in new:
                loss = score(candidate)
                if loss is None:
                    return alive, False
                alive.add(candidate, loss)
            alive.history.append(alive.best(1)[0][1])
        return alive, True

    def _children(self, parents: list[tuple[Candidate, float]], most: float, chance: random.Random) -> list[Candidate]:
        pool = [candidate for candidate, _ in parents]
        mutated = [self._mutated(chance.choice(pool), most, chance) for _ in range(self.mutations)]
        mixed = [self._mixed(chance.choice(pool), chance.choice(pool), chance) for _ in range(self.crossovers)]
        return mutated + mixed

    def _mutated(self, parent: Candidate, most: float, chance: random.Random) -> Candidate:
        changed = (
            divisor * 2.718281828459045 ** chance.gauss(0.0, _SPREAD) if chance.random() < self.change else divisor
            for divisor in parent
        )
        return monotone(tuple(changed), self.step, most)

    def _mixed(self, one: Candidate, other: Candidate, chance: random.Random) -> Candidate:
        return tuple(sorted(chance.choice(pair) for pair in zip(one, other, strict=True)))


@dataclass
class Population:
    """Candidates with their losses, and the best loss after every generation."""

    losses: dict[Candidate, float] = field(default_factory=dict)
    history: list[float] = field(default_factory=list)

    def add(self, candidate: Candidate, loss: float) -> None:
        """Note the loss of a candidate."""
        self.losses[candidate] = loss

    def best(self, count: int) -> list[tuple[Candidate, float]]:
        """The candidates of the smallest losses; of equal ones the first found."""
        return sorted(self.losses.items(), key=lambda item: item[1])[:count]


def monotone(divisors: Sequence[float], step: float, most: float) -> Candidate:
    """Divisors as multiples of `step` from 1 to `most`, never falling towards the low frequencies.

    >>> monotone([0.5, 3.0, 2.004], 0.01, 2.5)
    (1.0, 2.0, 2.5)
    """
    return tuple(sorted(round(round(min(max(each, 1.0), most) / step) * step, 10) for each in divisors))
