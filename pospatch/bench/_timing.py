"""Times of several functions, run in turn, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["CLOCKS", "Ratio", "alternate", "exponent", "ratio"]

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Ratio:
    """A median of pairs and the middle half around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def alternate(
    works: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    clock: str = "wall",
    device: str = "cpu",
    step: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each function, `repeats` times; every round runs each once, in an order that turns by one a round.

    The first, unmeasured round warms up.
    """
    now = CLOCKS[clock]
    names = list(works)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            _wait(device)
            start = now()
            works[name]()
            _wait(device)
            if turn:
                found[name].append(now() - start)
            step()
    return found


def ratio(ours: list[float], theirs: list[float]) -> Ratio:
    """Medians and quartiles of the ratios of each round."""
    pairs = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    if len(pairs) < 2:
        return Ratio(pairs[0], pairs[0], pairs[0])
    low, middle, high = statistics.quantiles(pairs, n=4, method="inclusive")
    return Ratio(middle, low, high)


def exponent(lengths: list[int], costs: list[float]) -> float | None:
    """Slope of log cost over log length by least squares: 1 is linear, 2 quadratic; None below two lengths."""
    if len(set(lengths)) < 2 or min(costs) <= 0:
        return None
    x, y = torch.tensor(lengths).double().log(), torch.tensor(costs).double().log()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def _wait(device: str) -> None:
    if device != "cpu":
        torch.get_device_module(device).synchronize()
