"""The record of a patch in a config: data only, validated like any other untrusted input before anything is built from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pospatch import registry
from pospatch.errors import CheckpointError, PospatchError
from pospatch.methods._base import Method

__all__ = ["VERSION", "methods_of"]

VERSION = 1


def methods_of(record: Any) -> list[Method]:
    """The methods that a record names, their options checked.

    Raises:
        CheckpointError: not a record, an unknown version, an unknown method or a bad option.
    """
    if not isinstance(record, Mapping) or not isinstance(record.get("stack"), list):
        raise CheckpointError(f"the config's 'pospatch' entry is not a patch record: got {type(record).__name__}")
    version = record.get("version")
    if version != VERSION:
        raise CheckpointError(
            f"the checkpoint's patch record has version {version!r} and this pospatch reads {VERSION}; upgrade pospatch"
        )
    return [_method(item) for item in record["stack"]]


def _method(item: Any) -> Method:
    if not isinstance(item, Mapping) or not isinstance(item.get("method"), str):
        raise CheckpointError(f"an entry of the patch record must be {{'method': name, ...}}, got {item!r:.200}")
    options = {name: value for name, value in item.items() if name != "method"}
    try:
        return registry.build(item["method"], **options)
    except PospatchError as error:
        raise CheckpointError(f"the checkpoint's patch record cannot be used: {error}") from error
