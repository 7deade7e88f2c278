"""Options of methods: dataclass fields that carry their type and range, checked when a method is built."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, field
from typing import Any

from pospatch.errors import BadOption, BadOptionType, short

__all__ = ["check", "choice", "flag", "integer", "integers", "number", "numbers", "word"]

LARGEST = 2**40  # no length, factor or count in use comes near; refuses 1e308 and 10**12 before memory is taken


def number(
    default: Any = MISSING,
    *,
    above: float = -LARGEST,
    low: float = -LARGEST,
    high: float = LARGEST,
    optional: bool = False,
) -> Any:
    """A finite float in (above, high], and at least `low`; None too where `optional`."""
    return _option("number", default, optional, above=above, low=low, high=high)


def integer(default: Any = MISSING, *, low: int = 1, high: int = 2**31, optional: bool = False) -> Any:
    """An int (no bool) in [low, high]; None too where `optional`."""
    return _option("integer", default, optional, low=low, high=high)


def numbers(default: Any = MISSING, *, above: float = 0.0, high: float = LARGEST, optional: bool = False) -> Any:
    """A sequence of finite floats in (above, high], kept as a tuple."""
    return _option("numbers", default, optional, above=above, high=high)


def integers(default: Any = MISSING, *, low: int = 0, high: int = 2**31, optional: bool = False) -> Any:
    """A sequence of ints in [low, high], kept as a tuple."""
    return _option("integers", default, optional, low=low, high=high)


def choice(default: Any, *valid: str) -> Any:
    """One of the given words."""
    return _option("choice", default, default is None, valid=valid)


def flag(default: bool = False) -> Any:
    """True or False."""
    return _option("flag", default, False)


def word(default: str) -> Any:
    """Any word; the method says which ones it knows."""
    return _option("word", default, False)


def _option(kind: str, default: Any, optional: bool, **rule: Any) -> Any:
    metadata = {"kind": kind, "optional": optional, **rule}
    return field(default=default, metadata=metadata) if default is not MISSING else field(metadata=metadata)


def check(method: str, name: str, value: Any, rule: Any) -> Any:
    """The value in its canonical type, or BadOption naming method, option, what was got and what was wanted."""
    if value is None and rule["optional"]:
        return None
    where = f"{method}: {name}={short(value)}"
    if rule["kind"] == "flag":
        if not isinstance(value, bool):
            raise BadOptionType(f"{where} must be True or False")
        return value
    if rule["kind"] == "word":
        if not isinstance(value, str):
            raise BadOptionType(f"{where} must be a string, got {type(value).__name__}")
        return value
    if rule["kind"] == "choice":
        if not isinstance(value, str) or value not in rule["valid"]:
            raise BadOption(f"{where} must be one of {', '.join(rule['valid'])}")
        return value
    if rule["kind"] in ("numbers", "integers"):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise BadOptionType(f"{where} must be a list of {rule['kind']}, got {type(value).__name__}")
        return tuple(_number(where, item, rule) for item in value)
    return _number(where, value, rule)


def _number(where: str, value: Any, rule: Any) -> float | int:
    whole = rule["kind"] in ("integer", "integers")
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        wanted = "an integer" if whole else "a number"
        error = BadOption if whole and isinstance(value, float) else BadOptionType
        raise error(f"{where} must be {wanted}, got {type(value).__name__}")
    low, above, high = rule.get("low", -LARGEST), rule.get("above", -LARGEST), rule["high"]
    # isfinite comes last: it overflows for integers of any size
    if value < low or value <= above or value > high or not math.isfinite(value):
        bounds = f"above {above:g}" if above > -LARGEST else f"at least {low:g}"
        raise BadOption(f"{where} must be finite, {bounds} and at most {high:g}")
    return value if whole else float(value)
