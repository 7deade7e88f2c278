"""What is compared: the unpatched model and methods with their options, read from one line of words."""

from __future__ import annotations

import ast
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pospatch import registry
from pospatch.api import methods_of
from pospatch.errors import BadOption

__all__ = ["CONTROL", "Entry", "parse"]

CONTROL = "unpatched"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model to measure: a stack of method names with options, or the control where there is no method.

    label: what is shown, which may be shortened.
    """

    label: str
    methods: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What is measured, whole: the methods with their options as they were understood, so that 2 and 2.0 are one."""
        built = methods_of(list(self.methods), self.options)
        return json.dumps([{"method": each.name, **each.options()} for each in built], sort_keys=True)

    @property
    def needs(self) -> str:
        """ "training" where one of the methods does not work on a pretrained model as it is."""
        return (
            "training" if any(registry.method_class(name).needs == "training" for name in self.methods) else "nothing"
        )

    def put_on(self, model: Any) -> None:
        """Apply the methods."""
        import pospatch

        pospatch.apply(model, list(self.methods), **self.options)


def parse(methods: str | Sequence[str | Entry]) -> list[Entry]:
    """Entries from `yarn:factor=2,self_extend:group_size=4:window=512,rope+logn`.

    Methods are separated by commas, a method's options by colons, the methods of a stack by plus signs; values are
    Python literals where they are ones. A comma inside brackets belongs to the value.

    >>> [entry.label for entry in parse("yarn:factor=2,dca")]
    ['yarn factor=2', 'dca']

    Raises:
        UnknownName: no such method.
        BadOption: nothing to compare, a part that is no NAME=VALUE, or one entry twice.
    """
    words = _split(methods, ",") if isinstance(methods, str) else list(methods)
    entries = [word if isinstance(word, Entry) else _entry(word) for word in words]
    if not entries:
        raise BadOption("at least one method to compare is wanted, e.g. yarn:factor=2,self_extend:group_size=4")
    keys = [Entry(label=CONTROL).key, *(entry.key for entry in entries)]
    twice = sorted({entry.label for entry in entries if keys.count(entry.key) > 1})
    if twice:
        raise BadOption(f"{', '.join(twice)} is given twice; each entry must differ in method or options")
    return _told_apart(entries)


def _told_apart(entries: list[Entry]) -> list[Entry]:
    """The entries with a number behind each label that stands for another one already."""
    taken, found = {CONTROL}, list[Entry]()
    for entry in entries:
        numbered = (f"{entry.label} ({number})" for number in itertools.count(2))
        label = next(each for each in itertools.chain([entry.label], numbered) if each not in taken)
        taken.add(label)
        found.append(replace(entry, label=label))
    return found


def _entry(word: str) -> Entry:
    name, *parts = _split(word, ":")
    stack = tuple(name.strip().split("+"))
    options: dict[str, Any] = {}
    for part in parts:
        option, equals, value = part.strip().partition("=")
        if not equals or not option.isidentifier() or option in options:
            raise BadOption(f"{part!r} of {word!r} must be NAME=VALUE, each name once: yarn:factor=2:beta_fast=16")
        options[option] = _value(value)
    methods_of(list(stack), options)  # an unknown name or option now rather than after hours
    shown = " ".join(f"{option}={_short(value)}" for option, value in options.items())
    return Entry(label=f"{' + '.join(stack)} {shown}".strip(), methods=stack, options=options)


def _value(word: str) -> Any:
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word


def _short(value: Any) -> str:
    words = str(value).replace(" ", "")
    return words if len(words) <= 24 else words[:20] + "..."


def _split(words: str, mark: str) -> list[str]:
    """Parts between marks that stand in no brackets, empty ones left out."""
    parts, depth = [""], 0
    for letter in words:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == mark and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]
