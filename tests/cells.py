"""Pairs of a method and a tiny host for the battery: which fit, on which stack, and which are refused.

All is read from the registries, so that a new method or host is tested without editing a test.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

import pospatch
from pospatch import registry
from pospatch.engine._trial import Trial
from pospatch.errors import PospatchError
from pospatch.methods import _base
from tests import tiny

REFERENCE = ("llama", "gpt2", "bert")

Stack = list[tuple[str, dict[str, Any]]]


@cache
def _trial(host: str, bed: tuple[str, ...]) -> Trial | None:
    """A trial on the host with the methods of `bed` on it, or None where they do not fit."""
    model = tiny.build(host)
    try:
        patched = pospatch.apply(model, list(bed)) if bed else model
    except PospatchError:
        return None
    return Trial(patched, vars(patched).get("_pospatch"))


@cache
def stack(host: str, method: str) -> tuple[tuple[str, tuple[Any, ...]], ...] | str:
    """What puts the method on the host: alone, on top of `rope`, or on what its oracle names; or why nothing does."""
    bare = _trial(host, ())
    assert bare is not None
    example = tuple({**bare.example(registry.method_class(method)), **battery(method)}.items())
    for bed in ((), *((("rope",),) if not bare.sites.rotary else ()), *_oracle(method, "BEDS", ())):
        trial = _trial(host, bed)
        if trial is not None and trial.reason(method, dict(example)) is None:
            return (*((name, ()) for name in bed), (method, example))
    return str(bare.reason(method, dict(example)))


def _oracle(method: str, attribute: str, default: Any) -> Any:
    name = f"tests.oracles.{method}"
    return getattr(importlib.import_module(name), attribute, default) if find_spec(name) else default


def battery(method: str) -> dict[str, Any]:
    """Options under which the method acts on a few tokens, where its oracle names some."""
    return _oracle(method, "BATTERY", {})


def fits(host: str, method: str) -> bool:
    """True where the pair can work."""
    return not isinstance(stack(host, method), str)


def kinds() -> list[str]:
    """One method of each kind: what the engine tells apart."""
    chosen: dict[Any, str] = {}
    for name in registry.names():
        cls = registry.method_class(name)
        kind = next(base for base in cls.__mro__ if base in vars(_base).values())
        dynamic = not cls.exact_decode
        chosen.setdefault((kind, cls.slot, dynamic, getattr(cls, "spectral", None), cls.clears), name)
    return sorted(chosen.values())


def cells(everything: bool) -> list[tuple[str, str]]:
    """(host, method): every method on the reference hosts, one of each kind on the others; or all pairs."""
    return [
        (host, method)
        for host in tiny.HOSTS
        for method in (registry.names() if everything or host in REFERENCE else kinds())
    ]


def apply(model: Any, host: str, method: str) -> Any:
    """Patch a model with a pair that fits, its learned tensors loud, so that each one matters."""
    chosen = stack(host, method)
    assert not isinstance(chosen, str), chosen
    pospatch.apply(model, [(name, dict(options)) for name, options in chosen])
    return spice(model)


def spice(model: Any, seed: int = 9) -> Any:
    """Move the patch's learned tensors away from a start that may be the identity."""
    generator = torch.Generator().manual_seed(seed)
    learned = set(pospatch.inspect(model).weights)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name in learned:
                value.add_(torch.randn(value.shape, generator=generator) * 0.2)
    return model


def patched(host: str, method: str, attention: str | None = None, seed: int = 0) -> Any:
    """A tiny model with the pair on it, in evaluation mode."""
    return apply(tiny.build(host, seed=seed, attention=attention), host, method)
