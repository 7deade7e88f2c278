"""The record of a patch in a config: data only, validated like any other untrusted input before anything is built from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pospatch import registry
from pospatch.checkpoint._numbers import check_rotary
from pospatch.engine._native import FIELDS
from pospatch.engine._patch import merge
from pospatch.errors import CheckpointError, PospatchError, short
from pospatch.methods._base import Method

__all__ = ["VERSION", "methods_of"]

VERSION = 1
LONGEST = 16  # methods in a stack; there are fewer slots
KINDS: dict[str, type] = {  # entries of a record of this version, in a config or in an adapter
    "version": int,
    "pospatch": str,
    "native": bool,
    "stack": list,
    "part": str,
    "base": dict,
    "base_config": dict,
    "tensors": list,
    "peft_type": str,
}


def methods_of(record: Any) -> list[Method]:
    """The methods that a record names, their options checked.

    Raises:
        CheckpointError: not a record, an unknown version, entry or method, an entry of another type, or a bad option.
    """
    if not isinstance(record, Mapping) or not isinstance(record.get("stack"), list):
        raise CheckpointError(f"the config's 'pospatch' entry is not a patch record: got {type(record).__name__}")
    version = record.get("version")
    if type(version) is not int or version != VERSION:
        raise CheckpointError(
            f"the checkpoint's patch record has version {short(version)} and this pospatch reads {VERSION}; upgrade pospatch"
        )
    for name, value in record.items():
        if name not in KINDS:
            raise CheckpointError(f"the patch record has an entry {short(name)} that version {VERSION} does not know")
        if not isinstance(value, KINDS[name]):
            raise CheckpointError(f"the patch record's {name!r} must be a {KINDS[name].__name__}, got {short(value)}")
    if not all(isinstance(name, str) for name in record.get("tensors", ())):
        raise CheckpointError(f"the patch record's 'tensors' must be names, got {short(record['tensors'])}")
    _check_base_fields(record.get("base", {}))
    if len(record["stack"]) > LONGEST:
        raise CheckpointError(f"the patch record stacks {len(record['stack'])} methods; at most {LONGEST} are read")
    stack = [_method(item) for item in record["stack"]]
    try:
        fits = merge([], stack) == stack
    except PospatchError as error:
        raise CheckpointError(f"the checkpoint's patch record cannot be used: {error}") from error
    if not fits:
        raise CheckpointError(f"the patch record names one method twice: {[method.name for method in stack]}")
    return stack


def _method(item: Any) -> Method:
    if not isinstance(item, Mapping) or not isinstance(item.get("method"), str):
        raise CheckpointError(f"an entry of the patch record must be {{'method': name, ...}}, got {short(item)}")
    options = {name: value for name, value in item.items() if name != "method"}
    try:
        return registry.method_class(item["method"]).from_options(options)
    except PospatchError as error:
        raise CheckpointError(f"the checkpoint's patch record cannot be used: {error}") from error


def _check_base_fields(base: dict[str, Any]) -> None:
    """The fields of the base's own config that a saved patch goes back to when it is removed."""
    if set(base) - {*FIELDS, "name", "fields", "sha256"}:
        raise CheckpointError(
            f"the patch record's 'base' has unknown entries: {short(sorted(set(base) - set(FIELDS), key=str))}"
        )
    for name in FIELDS:
        length = base.get(name)
        if name != "rope_parameters" and length is not None and (type(length) is not int or not 0 < length < 2**40):
            raise CheckpointError(f"the patch record's base has {name}={short(length)}, which is no length")
    rope = base.get("rope_parameters")
    if rope is not None and not isinstance(rope, dict):
        raise CheckpointError(f"the patch record's base has rope_parameters={short(rope)}, which is no dictionary")
    check_rotary(base, "the patch record's base")
