"""pospatch changes how an existing Hugging Face transformers model knows the order of its tokens.

    model = pospatch.apply(model, "yarn", factor=4.0)
    pospatch.inspect(model)
    pospatch.remove(model)

Names are resolved when first used, so that importing pospatch is quick and changes nothing in transformers.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from pospatch._on_import import when_imported

__version__ = "0.1.0"

_NAMES = {
    "apply": "pospatch.api",
    "remove": "pospatch.api",
    "inspect": "pospatch.inspection",
    "methods": "pospatch.inspection",
    "hosts": "pospatch.inspection",
    "from_pretrained": "pospatch.checkpoint",
    "register": "pospatch.registry",
    "PospatchError": "pospatch.errors",
}
__all__ = [*_NAMES, "__version__"]


class _CallableModule(ModuleType):
    """A folder of files that shares its name with a public function: calling the one calls the other."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module(_NAMES[name]), name)(*args, **kwargs)


class _Package(ModuleType):
    """Python binds `pospatch.methods` to the subpackage as soon as anything in it is imported; the name stays callable."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _NAMES and isinstance(value, ModuleType):
            value.__class__ = _CallableModule
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def _register_model_type() -> None:
    importlib.import_module("pospatch.checkpoint._config")  # registers at its end, also where its own import led here


# AutoModel* learns our checkpoints as soon as transformers' registry of models is there, which may be now, later or never
when_imported("transformers.models.auto.modeling_auto", _register_model_type)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'pospatch' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(importlib.import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
