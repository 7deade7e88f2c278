"""The model to compare with: one given, or the same weights with the patch taken off for a while."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pospatch.errors import BadOption

__all__ = ["base_of", "load_model", "unpatched"]


@contextmanager
def base_of(model: Any, base: Any, auto: str) -> Iterator[Any]:
    """The given model (an object, a folder or a repository), else `model` without its patch.

    Raises:
        BadOption: neither a base nor a patch.
    """
    if base is not None:
        yield load_model(base, auto, model)
        return
    with unpatched(model) as plain:
        yield plain


@contextmanager
def unpatched(model: Any) -> Iterator[Any]:
    """The same object without its patch, which stands again afterwards with its learned tensors.

    Raises:
        BadOption: the model carries no patch.
    """
    from pospatch.api import KEY, patch_of, unwrap
    from pospatch.engine._patch import attach

    target, patch = unwrap(model), patch_of(model)
    if patch is None:
        raise BadOption(
            f"{type(target).__name__} carries no patch, so there is nothing to compare it with: apply a method first, or "
            "give base=, a model or the folder of one"
        )
    patch.detach()
    del vars(target)[KEY]
    try:
        yield model
    finally:
        vars(target)[KEY] = attach(target, patch.stack, patch.kept)


def load_model(model: Any, auto: str, like: Any) -> Any:
    """A model object as it is, or one loaded with the dtype and device of `like` from a path or the name of an asset."""
    if not isinstance(model, str | os.PathLike):
        return model
    import transformers

    import pospatch
    from pospatch import assets

    weight = like.get_input_embeddings().weight
    loaded = pospatch.from_pretrained(getattr(transformers, auto), assets.model(os.fspath(model)), dtype=weight.dtype)
    return loaded.eval().to(weight.device)
