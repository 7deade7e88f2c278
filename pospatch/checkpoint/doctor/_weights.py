"""Names and shapes of a checkpoint's tensors from the headers of its safetensors files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pospatch.checkpoint.doctor._files import Files, read_json

__all__ = ["INDEX", "Weights", "weights_of"]

INDEX = "model.safetensors.index.json"
WHOLE = ("model.safetensors", "adapter_model.safetensors")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin")


@dataclass(frozen=True)
class Weights:
    """Where each tensor is.

    Args:
        places: file of each tensor.
        own: names in the patch's own file, or None where there is no such file.
        file: the name of that file.
        index: the index of shards, where there is one.
        pickled: pickle files, which are not opened.
        shapes_in: reads the header of one file.
    """

    places: dict[str, str] = field(default_factory=dict)
    own: frozenset[str] | None = None
    file: str = ""
    index: dict[str, Any] | None = None
    pickled: tuple[str, ...] = ()
    shapes_in: Callable[[str], dict[str, tuple[int, ...]]] | None = None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor, or None where no header has it."""
        place = self.places.get(name)
        if place is None or self.shapes_in is None or "/" in place or "\\" in place:
            return None
        return self.shapes_in(place).get(name)


def weights_of(files: Files, own_file: str) -> Weights:
    """What the headers say; of shards only the index is read until a shape is asked for.

    own_file: the name of the file with the patch's own tensors.
    """
    names, index = files.names(), read_json(files, INDEX)
    shapes = _remembering(files.shapes)
    present = [name for name in (*WHOLE, own_file) if _there(files, names, name)]
    places: dict[str, str] = {}
    if index is not None and isinstance(index.get("weight_map"), dict):
        places = {str(key): str(value) for key, value in index["weight_map"].items()}
    for name in present:
        if name in WHOLE:
            places |= dict.fromkeys(shapes(name), name)
    own = frozenset(shapes(own_file)) if own_file in present else None
    pickled = tuple(sorted(name for name in PICKLED if names is not None and name in names))
    return Weights(places, own, own_file, index, pickled, shapes)


def _there(files: Files, names: set[str] | None, name: str) -> bool:
    return name in names if names is not None else files.path(name) is not None


def _remembering(read: Callable[[str], dict[str, tuple[int, ...]]]) -> Callable[[str], dict[str, tuple[int, ...]]]:
    known: dict[str, dict[str, tuple[int, ...]]] = {}

    def shapes(name: str) -> dict[str, tuple[int, ...]]:
        if name not in known:
            known[name] = read(name)
        return known[name]

    return shapes
