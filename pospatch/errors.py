"""Every error pospatch raises: a PospatchError and the matching builtin, saying what was got, what was wanted, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "AlreadyPatched",
    "AssetError",
    "BadOption",
    "BadOptionType",
    "CheckpointError",
    "CheckpointWarning",
    "HubError",
    "NotPatched",
    "PospatchError",
    "SeamChanged",
    "ShapeMismatch",
    "UnknownName",
    "UnsupportedHost",
    "short",
    "suggest",
]


class PospatchError(Exception):
    """Base class of all errors raised by pospatch; catch this one to catch them all."""


class UnknownName(PospatchError, ValueError):
    """A method, option, task or site name that does not exist; the message lists near and valid names."""


class BadOption(PospatchError, ValueError):
    """An option value outside its range (NaN, zero, a list of the wrong length)."""


class BadOptionType(BadOption, TypeError):
    """An option of the wrong type, or an option that the method does not have."""


class UnsupportedHost(PospatchError, NotImplementedError):
    """A model, or a pair of model and method, that cannot work; the message gives the reason."""


class AlreadyPatched(PospatchError, ValueError):
    """Another method already holds a site that this one needs."""


class NotPatched(PospatchError, ValueError):
    """`remove` or a save was asked of a model that carries no patch."""


class SeamChanged(PospatchError, RuntimeError):
    """The proof failed: a module was not reached, or the native mechanism is still there."""


class AssetError(PospatchError, OSError):
    """A model or text that could not be fetched, converted or read; the message says what to do."""


class HubError(PospatchError, OSError):
    """An upload that was not done; the message says why, without any token."""


class CheckpointError(PospatchError, ValueError):
    """A checkpoint whose record, weights or version cannot be used."""


class ShapeMismatch(CheckpointError, RuntimeError):
    """Weights of other shapes than the config wants, for which transformers raises a RuntimeError."""


class CheckpointWarning(UserWarning):
    """A checkpoint is read as it says, and something near it is wrong or cuts inputs."""


def suggest(got: str, valid: Iterable[str]) -> str:
    """Return ` Did you mean 'yarn'?`-like text for a near miss, or an empty string.

    >>> suggest("yran", ["yarn", "rope"])
    " Did you mean 'yarn'?"
    """
    if len(got) > 64:
        return ""
    near = get_close_matches(str(got).lower(), list(valid), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def short(value: object) -> str:
    """What was got, of any size, in a few words of an error's message.

    >>> short([1, 2]), short(10**100), short([0] * 1000)
    ('[1, 2]', 'an integer of 333 bits', 'a list of 1000 items')
    """
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, list | tuple | dict | set | str) and len(value) > 128:
        return f"a {type(value).__name__} of {len(value)} items"
    try:
        return f"{value!r:.300}"
    except (ValueError, RecursionError):  # an integer inside that is too long to print, or too many levels
        return f"a {type(value).__name__}"
