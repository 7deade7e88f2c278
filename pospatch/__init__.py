"""pospatch changes how an existing Hugging Face transformers model knows the order of its tokens.

    model = pospatch.apply(model, "yarn", factor=4.0)
    pospatch.inspect(model)
    pospatch.remove(model)

Names are resolved when first used, so that importing pospatch is quick and changes nothing in transformers.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pospatch._on_import import when_imported

if TYPE_CHECKING:  # for editors and type checkers; each name is repeated because that is how a stub says "public"
    from pospatch.advice import advise as advise
    from pospatch.api import apply as apply
    from pospatch.api import coordinates as coordinates
    from pospatch.api import remove as remove
    from pospatch.checkpoint import from_pretrained as from_pretrained
    from pospatch.checkpoint import load_distance_embeddings as load_distance_embeddings
    from pospatch.checkpoint._peft import load_peft as load_peft
    from pospatch.checkpoint.adapter import load_adapter as load_adapter
    from pospatch.checkpoint.adapter import save_adapter as save_adapter
    from pospatch.checkpoint.export import export as export
    from pospatch.checkpoint.hub import push_to_hub as push_to_hub
    from pospatch.checkpoint.remote import save_remote as save_remote
    from pospatch.errors import PospatchError as PospatchError
    from pospatch.inspection import hosts as hosts
    from pospatch.inspection import inspect as inspect
    from pospatch.inspection import methods as methods
    from pospatch.registry import register as register

__version__ = "0.1.0"

_NAMES = {
    "advise": "pospatch.advice",
    "apply": "pospatch.api",
    "coordinates": "pospatch.api",
    "remove": "pospatch.api",
    "inspect": "pospatch.inspection",
    "methods": "pospatch.inspection",
    "hosts": "pospatch.inspection",
    "from_pretrained": "pospatch.checkpoint",
    "load_distance_embeddings": "pospatch.checkpoint",
    "export": "pospatch.checkpoint.export",
    "save_adapter": "pospatch.checkpoint.adapter",
    "load_adapter": "pospatch.checkpoint.adapter",
    "load_peft": "pospatch.checkpoint._peft",
    "save_remote": "pospatch.checkpoint.remote",
    "push_to_hub": "pospatch.checkpoint.hub",
    "register": "pospatch.registry",
    "PospatchError": "pospatch.errors",
}
__all__ = [*_NAMES, "__version__"]


class _Catalogue(ModuleType):
    """A subpackage that also answers when it is called, since it shares its name with a public function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module(_NAMES[name]), name)(*args, **kwargs)


for _shared in ("methods", "hosts"):  # importing a subpackage sets it on this package, over anything of the same name
    importlib.import_module(f"pospatch.{_shared}").__class__ = _Catalogue


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
