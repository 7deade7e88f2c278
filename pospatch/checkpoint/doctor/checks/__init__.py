"""The checks: each a function from the evidence to its findings; a new one is a new function with `@check`."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace

from pospatch.checkpoint.doctor._evidence import Evidence
from pospatch.checkpoint.doctor._finding import SEVERITIES, Finding
from pospatch.checkpoint.doctor.checks._registry import CHECKS, check

__all__ = ["CHECKS", "check", "examine"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def examine(seen: Evidence) -> list[Finding]:
    """What all checks find, the worst first."""
    found = [replace(item, check=name) for name, look in CHECKS.items() for item in look(seen)]
    return sorted(found, key=lambda item: SEVERITIES.index(item.severity))
