"""Names of the methods: one file of pospatch/methods each, found by listing the folder, imported when first asked for."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pospatch.errors import BadOptionType, UnknownName, short, suggest

if TYPE_CHECKING:
    from pospatch.methods._base import Method

__all__ = ["build", "method_class", "names", "register"]

_FOLDER = Path(__file__).parent / "methods"
_ADDED: dict[str, type[Method]] = {}


def names() -> list[str]:
    """All method names, sorted; nothing is imported.

    >>> "yarn" in names()
    True
    """
    files = (path.stem for path in _FOLDER.glob("*.py"))
    return sorted({stem for stem in files if not stem.startswith("_")} | set(_ADDED))


def method_class(name: str) -> type[Method]:
    """The class of a method by its registry name.

    Raises:
        UnknownName: no such method; the message lists all names.
        BadOptionType: the name is not a string.
    """
    if not isinstance(name, str):
        raise BadOptionType(
            f"a method is named by a string, got {name!r} of type {type(name).__name__}; valid: {names()}"
        )
    if name in _ADDED:
        return _ADDED[name]
    if name not in names():
        raise UnknownName(f"unknown method {short(name)}.{suggest(name, names())} Valid names: {', '.join(names())}")
    return _only_method(importlib.import_module(f"pospatch.methods.{name}"))


def build(name: str, **options: Any) -> Method:
    """A method by name with its options checked.

    >>> build("linear", factor=2.0).factor
    2.0
    """
    return method_class(name).from_options(options)


def register(name: str, method: type[Method]) -> None:
    """Add a method of your own under a new name (explicit, in code; nothing is ever loaded from a checkpoint).

    Raises:
        UnknownName: the name is taken or not lower_snake.
    """
    if name in names() or not name.isidentifier() or name != name.lower():
        raise UnknownName(f"cannot register {name!r}: a new name in lower_snake is wanted, taken ones are {names()}")
    method.name = name
    _ADDED[name] = method


def _only_method(module: Any) -> type[Method]:
    from pospatch.methods._base import Method

    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UnknownName(f"{module.__name__} must define exactly one method class, found {len(found)}")
    found[0].name = module.__name__.rpartition(".")[2]
    return found[0]
