"""What every method has: options that are checked, the layers it acts on, learned tensors that the engine owns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar

from torch import Tensor

from pospatch.errors import BadOption, BadOptionType, UnsupportedHost, short, suggest
from pospatch.geometry import Geometry
from pospatch.methods._options import check

__all__ = ["Method", "Weights"]

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods.

    Class variables say what the engine and the tables need:
        slot: what the method holds; two methods compose when their slots differ.
        family: heading in the catalogue.
        clears: True where the method is a whole positional mechanism, so that the host's native one is removed.
        causal_only: True where the formula has no two-sided form.
        needs: "nothing" where the method works on a pretrained model as it is, "training" where it does not.
        exact_decode: False where frequencies depend on the total length, so that cached decoding cannot equal one pass.
        source: title, arXiv id and equation.
    """

    name: ClassVar[str] = ""
    slot: ClassVar[str] = ""
    family: ClassVar[str] = ""
    clears: ClassVar[bool] = True
    causal_only: ClassVar[bool] = False
    needs: ClassVar[str] = "training"
    exact_decode: ClassVar[bool] = True
    source: ClassVar[str] = ""

    layers: tuple[int, ...] | str | None = field(default=None, metadata={"kind": "layers", "optional": True})

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Method:
        """Build from keyword options; unknown and missing ones raise, naming what the method has."""
        valid = [item.name for item in fields(cls)]
        for name in options:
            if name not in valid:
                raise BadOptionType(
                    f"{cls.name}: unknown option {short(name)}.{suggest(name, valid)} Valid options: {', '.join(valid)}"
                )
        missing = [
            i.name
            for i in fields(cls)
            if i.default is MISSING and i.default_factory is MISSING and i.name not in options
        ]
        if missing:
            raise BadOptionType(
                f"{cls.name}: option {missing[0]!r} is required, e.g. apply(model, {cls.name!r}, {missing[0]}=...)"
            )
        return cls(**options)

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "layers":
                object.__setattr__(self, "layers", _check_layers(self.name, value))
            elif "kind" in item.metadata:
                object.__setattr__(self, item.name, check(self.name, item.name, value, item.metadata))
        self.check()

    @property
    def reads_grid(self) -> bool:
        """True where the method asks for the grid of patches, which each call of an image model says anew."""
        return False

    def check(self) -> None:
        """Rules between options; raise BadOption naming both."""

    def fits(self, geometry: Geometry) -> None:
        """Raise UnsupportedHost or BadOption where this method cannot act on such a layer."""
        if self.causal_only and not geometry.causal:
            raise UnsupportedHost(f"{self.name} is defined for causal attention only and this attention is two-sided")

    def options(self) -> dict[str, Any]:
        """The options that differ from their defaults, as plain JSON data."""
        plain = {
            item.name: getattr(self, item.name) for item in fields(self) if getattr(self, item.name) != item.default
        }
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    @classmethod
    def example(cls, options: dict[str, Any], geometry: Geometry) -> dict[str, Any]:
        """Options with which the method can be tried on a layer; `options` has 2 for each one that is required."""
        return options

    def weights(self, geometry: Geometry) -> dict[str, Tensor]:
        """Initial values of the learned tensors of one layer, by name; empty where there are none."""
        return {}

    def chosen(self, layers: int) -> list[int]:
        """Indices of the layers that the method acts on."""
        if self.layers is None or self.layers == "all":
            return list(range(layers))
        if isinstance(self.layers, str):
            rule, _, step = self.layers.partition(":")
            every = int(step)
            return [i for i in range(layers) if ((i + 1) % every == 0) == (rule == "every")]
        if bad := [i for i in self.layers if not -layers <= i < layers]:
            raise BadOption(
                f"{self.name}: layers={short(list(self.layers))} has index {short(bad[0])}, "
                f"the model has layers 0 to {layers - 1}"
            )
        return sorted({i % layers for i in self.layers})


def _check_layers(name: str, value: Any) -> Any:
    if value is None or value == "all":
        return value
    if isinstance(value, str):
        rule, _, step = value.partition(":")
        if rule in ("every", "except_every") and step.isascii() and step.isdigit() and int(step[:9]) > 0:
            return value
    elif (
        isinstance(value, list | tuple | range)
        and all(isinstance(i, int) and not isinstance(i, bool) for i in value)
        and value
    ):
        return tuple(value)
    raise BadOption(
        f"{name}: layers={short(value)} must be a list of layer indices, 'all', 'every:4' (layers 3, 7, ...) or 'except_every:4'"
    )
