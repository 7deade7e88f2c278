"""Which method and which options for a model and a target length, with the reasons and the warnings.

print(pospatch.advise("./model", 32768))
"""

from __future__ import annotations

import os
from typing import Any

from pospatch.advice._advice import Advice, Suggestion
from pospatch.advice._facts import facts_of
from pospatch.advice._rules import suggestions
from pospatch.advice._warnings import reasons, warnings
from pospatch.errors import BadOption, BadOptionType

__all__ = ["Advice", "Suggestion", "advise"]


def advise(model: Any, length: int) -> Advice:
    """Methods for reading `length` tokens, the best first, from the config alone; no weights are loaded.

    Each reason names the paper of its rule, or says that it is a rule of thumb; none replaces a measurement (`pospatch
    compare`).

    Args:
        model: a model, a config, or the folder or repository of one.
        length: tokens to be read.

    Raises:
        BadOption: the length is no positive integer, or the path leads to no config.
        UnsupportedHost: a family that pospatch cannot reach.

    >>> print(pospatch.advise(model, 32768))  # doctest: +SKIP
    """
    if not isinstance(length, int) or isinstance(length, bool):
        raise BadOptionType(f"length must be an integer in tokens, got {length!r}")
    if length < 1:
        raise BadOption(f"length must be positive, got {length}")
    facts = facts_of(os.fspath(model) if isinstance(model, os.PathLike) else model)
    found = suggestions(facts, length)
    return Advice(
        model=facts.name,
        family=facts.family,
        mechanism=facts.mechanism,
        trained_length=facts.trained,
        length=length,
        factor=facts.factor(length),
        suggestions=found,
        reasons=reasons(facts, length),
        warnings=warnings(facts, length, found),
        cache_bytes=facts.cache_bytes(length),
    )
