"""A live view of a config, placed on one attention module: everything reads through, only the attention's name is ours.

The model, its masks and a later `set_attn_implementation` see the real config; the module alone is dispatched to pospatch.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

__all__ = ["PREFIX", "real", "view"]

PREFIX = "pospatch|"
_MADE: set[type] = set()


@cache
def _view_class(config_class: type) -> type:
    def name(self: Any) -> str:
        return PREFIX + (self._attn_implementation_internal or "sdpa")

    made = type(
        config_class.__name__,
        (config_class,),
        {
            "__slots__": ("_real",),
            "__module__": config_class.__module__,
            "__qualname__": config_class.__qualname__,
            "_attn_implementation": property(name),
            "__reduce__": lambda self: (view, (self._real,)),
            "__reduce_ex__": lambda self, protocol: (view, (self._real,)),
            "__deepcopy__": lambda self, memo: view(copy.deepcopy(self._real, memo)),
        },
    )
    _MADE.add(made)
    return made


def view(config: Any) -> Any:
    """A view of `config` that shares its state."""
    seen: Any = object.__new__(_view_class(type(config)))  # type: ignore[arg-type]
    object.__setattr__(seen, "__dict__", config.__dict__)
    object.__setattr__(seen, "_real", config)
    return seen


def real(config: Any) -> Any:
    """The config behind a view, or the config itself."""
    return object.__getattribute__(config, "_real") if type(config) in _MADE else config
