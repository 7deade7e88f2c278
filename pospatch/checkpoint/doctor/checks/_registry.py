"""Where the checks are listed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pospatch.checkpoint.doctor._evidence import Evidence
from pospatch.checkpoint.doctor._finding import Finding

__all__ = ["CHECKS", "check"]

Check = Callable[[Evidence], Iterator[Finding]]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """List a check under its own name."""
    CHECKS[function.__name__] = function
    return function
