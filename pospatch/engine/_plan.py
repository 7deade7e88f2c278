"""What a stack of methods means on one model: which site is cleared, which is filled, by what; decided before any change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pospatch.engine._geometry import layer_type, trained_length
from pospatch.engine._sites import Sites, inv_freqs, label_of, stack_of
from pospatch.errors import UnsupportedHost
from pospatch.geometry import Geometry, Rotation
from pospatch.methods._base import Bands, Bias, Embedding, Method, Rotary, Scaling

__all__ = ["Plan"]


class _Standing(Rotary):
    """The rotary encoding that stands there, read by methods that re-index it."""

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        assert geometry.rotation is not None
        return geometry.rotation.inv_freq, geometry.rotation.attention_factor


_Standing.name = "native rotation"


class Plan:
    """The decisions about one stack on one model."""

    def __init__(
        self, model: Any, sites: Sites, stack: list[Method], layers: dict[str, Geometry], whole: Any = None
    ) -> None:
        self.model, self.sites, self.stack = model, sites, stack
        self.whole = model if whole is None else whole  # the model of which `model` is a part
        self.slots = {method.slot: method for method in stack}
        self.base = layers
        self.top: Method | None = self.slots.get("scaling") or self.slots.get("rotation")
        self.layers = {path: self._under_top(path, geometry) for path, geometry in layers.items()}
        self.clearing = [method for method in stack if method.clears]
        self.partial = any(len(m.chosen(g.layers)) < g.layers for m in self.clearing for g in layers.values())

    def _under_top(self, path: str, geometry: Geometry) -> Geometry:
        """The geometry that methods see: rotation is what `rope` put there, or the native one, or nothing."""
        placed = self.slots.get("rotation")
        if (isinstance(placed, Rotary) and "scaling" in self.slots) or (
            isinstance(self.slots.get("score"), Bands) and placed is not None
        ):
            return geometry.with_(rotation=_placed(placed, geometry))  # type: ignore[arg-type]
        if any(method.clears for method in self.stack) and placed is None:
            return geometry.with_(rotation=None)
        return geometry

    @property
    def paired(self) -> bool:
        """True where the model has an encoder and a decoder, each with positions of its own."""
        return bool(getattr(self.model.config, "is_encoder_decoder", False))

    def firsts(self) -> dict[str, tuple[str, Geometry]]:
        """The first attention of each stack, as (path, geometry)."""
        found: dict[str, tuple[str, Geometry]] = {}
        for path, geometry in self.base.items():
            found.setdefault(stack_of(path, self.paired), (path, geometry))
        return found

    @property
    def by_module(self) -> bool:
        """True where the host's own rotary module can carry the new frequencies, at native cost."""
        top = self.top
        return (
            isinstance(top, Rotary)
            and bool(self.sites.rotary or self.sites.sincos)
            and top.spectral
            and not top.dynamic
            and not isinstance(self.slots.get("score"), Bands)
            and not self.partial
            and top.layers in (None, "all")
            and not any(top.weights(geometry) for geometry in self.layers.values())
        )

    def reached(self, path: str) -> Geometry:
        """The geometry as an Index method sees it: its length is the number of positions that are known there."""
        geometry, top, table = self.layers[path], self.top, self.slots.get("embedding")
        length = None
        if isinstance(table, Embedding):
            length = table.rows(self.base[path])
        elif isinstance(top, Rotary) and not self.tables_read():
            length = top.target_length(geometry)
        return geometry.with_(length=length or geometry.length)

    def left_alone(self, method: Method, path: str) -> bool:
        """True for a layer without rotation among layers that have one: what acts on rotations passes it by."""
        if not isinstance(method, Rotary | Bands) or self.base[path].rotation is not None:
            return False
        return any(geometry.rotation is not None for geometry in self.base.values())

    @staticmethod
    def attention_reads(acting: dict[str, Method]) -> bool:
        """True where what acts inside an attention reads positions that an Index method may choose."""
        score = acting.get("score")
        return not isinstance(score, Bands) and (isinstance(score, Bias) or "rotary" in acting)

    def tables_read(self) -> bool:
        """True where a table of the host is still there to be read."""
        return bool(self.sites.tables) and (not self.clearing or "embedding" in self.slots)

    def rotary_read(self) -> bool:
        """True where the host's rotary module, or its copy with other frequencies, still rotates."""
        return bool(self.sites.rotary) and (self.by_module or self.partial or not self.native_rotation_goes())

    def rehearse(self) -> None:
        """Compute once what the methods would put there, so that what only shows then raises here."""
        for path, geometry in self.base.items():
            if isinstance(method := self.slots.get("embedding"), Embedding):
                method.table(geometry)
            if isinstance(self.top, Rotary) and self.top.spectral:
                self.top.frequencies(geometry if self.top is self.slots.get("rotation") else self.layers[path])
            return

    def native_rotation_goes(self) -> bool:
        """True where q and k are rotated by us or by nobody."""
        return bool(self.clearing) or self.top is not None or isinstance(self.slots.get("score"), Bands)

    def spectra(self) -> dict[str | None, tuple[Tensor, float]]:
        """New frequencies by layer type; where a host has types, a scaling touches full attention only."""
        top: Rotary = self.top  # type: ignore[assignment]
        spectra: dict[str | None, tuple[Tensor, float]] = {}
        for path, geometry in self.layers.items():
            label = self.label(path, geometry)
            if label not in spectra and self.scales(top, label):
                source = geometry if isinstance(top, Scaling) else self.base[path]
                spectra[label] = top.frequencies(source)
        return spectra

    def label(self, path: str, geometry: Geometry) -> str | None:
        """The layer type whose frequencies a layer reads, or None where all layers share one."""
        labels = {label_of(name) for module in self.sites.rotary.values() for name in inv_freqs(module)}
        return (
            None
            if not labels or None in labels
            else layer_type(getattr(self.sites.attention[path], "config", self.model.config), geometry.layer)
        )

    @staticmethod
    def scales(top: Method, label: str | None) -> bool:
        """True where a layer of this type takes the new frequencies; layers with a window never see far."""
        return label is None or not isinstance(top, Scaling) or label == "full_attention"

    def seen_by(self, path: str, geometry: Geometry) -> Geometry:
        """`rope` itself sees the native rotation (its theta), what scales or re-indexes it sees what rope put there."""
        if (
            isinstance(self.top, Rotary)
            and self.top is self.slots.get("rotation")
            and not isinstance(self.slots.get("score"), Bands)
        ):
            return self.base[path].with_(table=None)
        return geometry.with_(table=None)

    def acting(self, path: str, geometry: Geometry) -> dict[str, Method]:
        """The methods that act inside this layer's attention, by role."""
        chosen = {
            slot: method for slot, method in self.slots.items() if geometry.layer in method.chosen(geometry.layers)
        }
        acting: dict[str, Method] = {}
        chosen = {slot: method for slot, method in chosen.items() if not self.left_alone(method, path)}
        if "score" in chosen:
            acting["score"] = chosen["score"]
        acting |= {slot: chosen[slot] for slot in ("norm", "temperature") if slot in chosen}
        if isinstance(self.top, Rotary) and not self.by_module:
            if self.top.slot in chosen and self.scales(self.top, self.label(path, geometry)):
                acting["rotary"] = self.top
            elif geometry.rotation is not None:
                acting["rotary"] = _Standing()
        elif isinstance(self.slots.get("score"), Bands) and geometry.rotation is not None:
            acting["rotary"] = _Standing()
        if isinstance(acting.get("score"), Bands) and isinstance(self.top, Rotary):
            acting["rotary"] = self.top if isinstance(self.top, Scaling) else _Standing()
        return acting

    def trained_length(self) -> int | None:
        """The length in tokens that the model was trained for: rows of its tables, else what its config says."""
        lengths = {table.rows for table in self.sites.tables}
        return min(lengths) if lengths else trained_length(self.model.config.get_text_config())


def _placed(method: Rotary, geometry: Geometry) -> Rotation:
    """What a rotary method puts there, as the next method sees it."""
    if not method.spectral or method.dynamic:
        raise UnsupportedHost(f"{method.name} has no fixed spectrum that another method could scale or re-index")
    inv_freq, amplitude = method.frequencies(geometry)
    native = method.rope_parameters(geometry) or {}
    theta = float(native.get("rope_theta") or getattr(method, "rope_theta", None) or 10000.0)
    dim = 2 * inv_freq.shape[-1]
    plain = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float) / dim))
    kind = "default" if torch.equal(plain, inv_freq.cpu()) and amplitude == 1.0 else "custom"
    layout = geometry.rotation.layout if geometry.rotation is not None else "half"
    return Rotation(dim=dim, theta=theta, inv_freq=inv_freq, attention_factor=amplitude, rope_type=kind, layout=layout)
