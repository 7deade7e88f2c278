"""Which thread calls a module, and by what names its forward takes what it is called with."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from threading import get_ident
from typing import Any

import torch
import torch.nn as nn

__all__ = ["here", "named", "parameters"]


def here() -> int:
    """This thread; a compiled graph holds the whole forward, so that nothing is shared there."""
    return 0 if torch.compiler.is_compiling() else get_ident()


def parameters(module: nn.Module) -> tuple[str, ...]:
    """Names of what a module's forward takes, in order, without the module."""
    return _names(type(module).forward)


@cache
def _names(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(inspect.unwrap(forward)).parameters)[1:]


def named(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of one call of a module by name."""
    return {**dict(zip(parameters(module), args, strict=False)), **kwargs}
