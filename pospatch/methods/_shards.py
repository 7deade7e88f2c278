"""What of a method still holds where a sequence is cut over processes, or several documents share a row: derived from its kind.

Weights and batches may always be shared out (DDP, FSDP). Context parallelism gives each process a part of every sequence: around
a ring (torch's, through accelerate) the keys travel and masks are dropped; under Ulysses (DeepSpeed's) each process attends
with some of the heads to the whole sequence. What a method computes before attention sees the process's own part.
"""

from __future__ import annotations

from dataclasses import MISSING, fields

import torch

from pospatch.errors import PospatchError
from pospatch.geometry import Geometry, Rotation
from pospatch.methods._base import Bands, Bias, Contextual, Embedding, Fold, Index, Method, Rotary

__all__ = ["SCHEMES", "TEXT", "allowed", "example", "refusal"]

SCHEMES = ("ddp", "fsdp", "ring", "ulysses", "packing")
_WIDE = "makes each head wider, and Ulysses takes heads of the model's own size alone"
TEXT = Geometry(
    heads=4,
    head_dim=16,
    width=64,
    length=64,
    layers=4,
    rotation=Rotation(dim=16, theta=1e4, inv_freq=1e4 ** (-torch.arange(8) / 8)),
    table=torch.zeros(64, 64),
)


def refusal(method: Method, scheme: str, geometry: Geometry = TEXT) -> str | None:
    """Why a method would compute something else under one of SCHEMES than alone, or None where it would not."""
    if scheme == "packing":
        return _dynamic(
            method, "goes by the longest document of a row, so shorter ones would be read with its frequencies"
        )
    if scheme not in ("ring", "ulysses"):
        return None
    if isinstance(method, Bias | Bands | Contextual):
        return _of_scores(method, scheme)
    if isinstance(method, Embedding):
        reading = method.reading(geometry)
        return None if reading is None else refusal(reading, scheme, geometry)
    if isinstance(method, Index):
        return _of_positions(method)
    if scheme == "ulysses" and isinstance(method, Rotary) and _widens(method, geometry):
        return _WIDE
    return _dynamic(method, "goes by the length of the sequence, and a process sees that of its own part")


def example(cls: type[Method]) -> Method | None:
    """A method with its example options, or None where it cannot act on text."""
    required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    try:
        method = cls.from_options(cls.example(dict.fromkeys(required, 2), TEXT))
        method.fits(TEXT)
    except PospatchError:
        return None
    return method


def allowed(cls: type[Method]) -> list[str]:
    """The schemes under which a method computes what it does alone; images are neither cut nor packed."""
    method = example(cls)
    return [name for name in SCHEMES if refusal(method, name) is None] if method is not None else ["ddp", "fsdp"]


def _of_scores(method: Method, scheme: str) -> str:
    if not isinstance(method, Bias):
        return "makes its logits from the keys at hand, and a process holds those of its own part alone"
    if scheme == "ulysses":
        return (
            _WIDE
            if isinstance(method, Fold)
            else "adds offsets for all heads and its own part, where attention sees some heads and the whole sequence"
        )
    return (
        "counts its columns from the last key at hand, which differs from part to part"
        if isinstance(method, Fold)
        else "adds its offsets to the mask, and context parallelism drops masks"
    )


def _widens(method: Rotary, geometry: Geometry) -> bool:
    """True where a rotated head has more dimensions than the model's."""
    x = torch.zeros(1, geometry.heads, 1, geometry.head_dim)
    length = torch.ones(1, 1, dtype=torch.long) if method.dynamic else None
    positions = torch.zeros(1, 1, dtype=torch.long)
    turned = method.rotate(x, positions, "query", method.weights(geometry), geometry, length)
    return turned.shape[-1] != geometry.head_dim


def _of_positions(method: Index) -> str | None:
    if method.training_only:
        return "draws the positions of a whole sequence, and each process would draw its own for its part"
    if method.by_token:
        return "reads the tokens before each one, and other processes hold them"
    return "goes by the length of each document, and a process sees its own part" if method.by_row else None


def _dynamic(method: Method, why: str) -> str | None:
    return why if isinstance(method, Rotary) and method.dynamic else None
