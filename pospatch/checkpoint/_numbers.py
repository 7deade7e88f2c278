"""Numbers that a config computes positions from, and how many modules it asks for, checked before anything is made of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, TypeGuard

from pospatch.errors import CheckpointError, short

__all__ = ["DICTIONARIES", "LARGEST", "check_counts", "check_rotary", "finite", "wrong_numbers"]

DICTIONARIES = ("rope_scaling", "rope_parameters")
ABOVE_ZERO = (
    "factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "low_freq_factor",
    "high_freq_factor",
    "rope_theta",
)
LISTS = ("short_factor", "long_factor")
LARGEST = 1e9  # a theta or factor beyond which float32 frequencies say nothing
MOST = 4096  # of layers, blocks, stages or experts; each is a module, so a count is paid in time and memory
COUNTS = re.compile(r"(^|_)(layers?|blocks?|stages?|experts?|depths?)$")
SUMMED = re.compile(r"(^|_)(n|num)_|depths?$")  # lists of counts; other lists have the places of some layers


def finite(value: Any) -> TypeGuard[int | float]:
    """True for a number that can be computed with."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def wrong_numbers(parameters: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values that turn positions into nonsense, of which transformers says nothing."""
    for name in ABOVE_ZERO:
        value = parameters.get(name)
        if value is not None and not (finite(value) and 0 < value <= LARGEST):
            yield name, value


def check_rotary(config: Any, source: str) -> None:
    """Refuse a config that is not trusted where its rotary parameters, at any depth, are no such numbers.

    Raises:
        CheckpointError: naming one.
    """
    for name, value in _entries(config):
        if name in DICTIONARIES and isinstance(value, dict):
            for group in (value, *(item for item in value.values() if isinstance(item, dict))):
                _check_group(group, f"{source}: {name}")
        elif name == "rope_theta" and value is not None:
            _check_group({name: value}, source)


def _check_group(group: dict[str, Any], source: str) -> None:
    wrong = list(wrong_numbers(group))
    for name in LISTS:
        values = group.get(name)
        if values is not None and not (
            isinstance(values, list) and all(finite(v) and 0 < v <= LARGEST for v in values)
        ):
            wrong.append((name, values))
    if wrong:
        name, value = wrong[0]
        raise CheckpointError(f"{source} has {name}={short(value)}; wanted are numbers above 0 and at most {LARGEST:g}")


def check_counts(config: Any, source: str) -> None:
    """Refuse a config that asks, at any depth, for very many modules; as data, since a config class makes lists of them.

    Raises:
        CheckpointError: naming the entry.
    """
    for name, value in _entries(config):
        if COUNTS.search(name) and (count := _count(name, value)) > MOST:
            raise CheckpointError(
                f"{source}: its config says {name}={short(value)}, {short(count)} modules; at most {MOST} are read"
            )


def _count(name: str, value: Any) -> int:
    values = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int) and item > 0]
    return sum(values) if SUMMED.search(name) else max(values, default=0)


def _entries(config: Any) -> Iterator[tuple[str, Any]]:
    """Every named value, however deep."""
    inside = [config]
    while inside:
        found = inside.pop()
        if isinstance(found, list):
            inside += found
        elif isinstance(found, dict):
            inside += found.values()
            yield from ((str(name), value) for name, value in found.items())
