"""The positional methods: pure torch, one file each, registry name = file stem. See pospatch.registry to find them by name.

The kinds of methods and the options' checks are public here, for methods of your own:
`from pospatch.methods import Bias, number`. They are imported when first asked for, so that importing this package
loads no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_SOURCES = ("_base", "_options")


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        for source in _SOURCES:
            module = importlib.import_module(f"pospatch.methods.{source}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module 'pospatch.methods' has no attribute {name!r}; methods are built by pospatch.registry")
