"""One patch: a stack of methods on one model, attached as a whole, proven, recorded, and undone as a whole."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from pospatch import registry
from pospatch.engine import _native, _probe, embedding, positions, rotation
from pospatch.engine._config import carry_back, own_configs
from pospatch.engine._geometry import declared, geometries, layer_type, survey
from pospatch.engine._seams import KEYWORD, carry, register
from pospatch.engine._sites import Sites, find, stack_of
from pospatch.engine._state import State
from pospatch.engine._undo import Undo
from pospatch.engine._view import view
from pospatch.errors import AlreadyPatched, BadOption, PospatchError, SeamChanged, UnsupportedHost
from pospatch.geometry import Geometry, Rotation
from pospatch.methods._base import Bands, Embedding, Index, Method, Rotary, Scaling

__all__ = ["Patch", "Trial", "attach", "describe", "merge"]

RECORD_VERSION = 1
Kept = dict[tuple[str, str], Any]


@dataclass
class Patch:
    """What stands on a model, and the way back."""

    stack: list[Method]
    undo: Undo = field(default_factory=Undo)
    configs: list[tuple[Any, Any]] = field(default_factory=list)
    snapshots: list[dict[str, Any]] = field(default_factory=list)
    sites: list[dict[str, Any]] = field(default_factory=list)
    kept: Kept = field(default_factory=dict)
    native: bool = False
    trained_length: int | None = None
    base: dict[str, Any] = field(default_factory=dict)
    found: Sites | None = None
    layers: dict[str, Geometry] = field(default_factory=dict)
    readers: dict[str, positions.Reindex] = field(default_factory=dict)

    def detach(self) -> None:
        """Play everything back; trained weights of the host stay as they are."""
        carry_back(self.configs, self.snapshots)
        self.undo.play()


def merge(stack: list[Method], added: list[Method]) -> list[Method]:
    """The stack with more methods: the same method again replaces itself, another in the same slot is refused.

    Raises:
        AlreadyPatched: naming who holds the slot.
    """
    result = list(stack)
    for method in added:
        holder = next((item for item in result if item.slot == method.slot), None)
        if holder is not None and holder.name != method.name:
            raise AlreadyPatched(
                f"{method.name!r} needs the {method.slot} site and {holder.name!r} holds it; call pospatch.remove(model) first"
            )
        if holder is not None:
            result[result.index(holder)] = method
        else:
            result.append(method)
    if len(result) > 1 and any(method.slot == "none" for method in result):
        raise AlreadyPatched("'nope' clears every site, so nothing stands beside it; call pospatch.remove(model) first")
    return result


def attach(model: Any, stack: list[Method], kept: Kept) -> Patch:
    """Attach a stack to an unpatched model, or raise and leave it as it was.

    kept: learned tensors of an earlier attachment by (path, name), so that training survives when the stack grows.
    """
    register()
    sites = find(model)
    spectral = all(isinstance(method, Rotary) and method.spectral and not method.dynamic for method in stack)
    seen = declared(sites) if spectral and sites.rotary else survey(model, sites)
    layers = geometries(model, sites, seen)
    plan = _Plan(model, sites, stack, layers)
    if spectral and sites.rotary and not plan.by_module:  # what acts inside attention needs what attention really gets
        layers = geometries(model, sites, survey(model, sites))
        plan = _Plan(model, sites, stack, layers)
    plan.check()
    patch = Patch(stack=stack, kept=dict(kept), found=sites, layers=layers)
    try:
        plan.carry_out(patch)
        _prove(model, patch, plan)
    except BaseException:
        patch.undo.play()
        raise
    return patch


class _Standing(Rotary):
    """The rotary encoding that stands there, read by methods that re-index it."""

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        assert geometry.rotation is not None
        return geometry.rotation.inv_freq, geometry.rotation.attention_factor


_Standing.name = "native rotation"


class _Plan:
    """Which site is cleared, which is filled, by what: decided before anything is changed."""

    def __init__(self, model: Any, sites: Sites, stack: list[Method], layers: dict[str, Geometry]) -> None:
        self.model, self.sites, self.stack = model, sites, stack
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
    def by_module(self) -> bool:
        """True where the host's own rotary module can carry the new frequencies, at native cost."""
        top = self.top
        return (
            isinstance(top, Rotary)
            and bool(self.sites.rotary)
            and top.spectral
            and not top.dynamic
            and not isinstance(self.slots.get("score"), Bands)
            and not self.partial
            and top.layers in (None, "all")
            and not any(top.weights(geometry) for geometry in self.layers.values())
        )

    def check(self) -> None:
        for method in self.stack:
            for path, geometry in self.layers.items():
                if geometry.layer in method.chosen(geometry.layers):
                    method.fits(
                        geometry.with_(rotation=self.base[path].rotation)
                        if method is self.slots.get("rotation")
                        else geometry
                    )
            if isinstance(method, Index):
                self._check_index(method)
            if isinstance(method, Bands):
                self._check_bands(method)
        if self.partial and self.sites.tables:
            raise UnsupportedHost(
                f"{self.clearing[0].name} with layers={self.clearing[0].layers}: the table of positions is added once, "
                "before all layers, and cannot be cleared for some; leave layers out"
            )

    def _check_index(self, method: Index) -> None:
        if method.layers not in (None, "all"):
            raise BadOption(
                f"{method.name}: layers={method.layers!r}, but positions are read once, for all layers; leave it out"
            )
        if self._tables_read() or self._rotary_read():
            return
        holders = " and ".join(repr(item.name) for item in self.stack if item is not method)
        why = f"{holders} takes their place" if holders else "this model has neither"
        raise UnsupportedHost(
            f"{method.name} changes the positions that a table or the host's own rotary module reads, and {why}"
        )

    def _check_bands(self, method: Bands) -> None:
        """Refuse what would change nothing: no layer sees beyond the first band."""
        kept, windows = set(), set()
        for geometry in self.layers.values():
            near = method.bands(geometry)[0]
            if geometry.window is None or not near.stop or near.unit > 1 or near.amplitude != 1.0:
                return
            kept.add(near.stop)
            windows.add(geometry.window)
        if max(windows) <= min(kept):
            raise UnsupportedHost(
                f"{method.name} leaves the nearest {min(kept)} tokens as they are and no layer sees further than its sliding "
                f"window of {max(windows)}; nothing would change"
            )

    def _tables_read(self) -> bool:
        return bool(self.sites.tables) and (not self.clearing or "embedding" in self.slots)

    def _rotary_read(self) -> bool:
        return bool(self.sites.rotary) and (self.by_module or self.partial or not self._native_rotation_goes())

    def rehearse(self) -> None:
        """Compute once what the methods would put there, so that what only shows then raises here."""
        for path, geometry in self.base.items():
            if isinstance(method := self.slots.get("embedding"), Embedding):
                method.table(geometry)
            if isinstance(self.top, Rotary) and self.top.spectral:
                self.top.frequencies(geometry if self.top is self.slots.get("rotation") else self.layers[path])
            return

    # what is done -----------------------------------------------------------------------------------------------------------

    def carry_out(self, patch: Patch) -> None:
        model, undo = self.model, patch.undo
        patch.trained_length = self._trained_length()
        patch.base = _native.base_fields(model)
        patch.configs = own_configs(model, undo)
        self._describe(patch)
        table_method = self.slots.get("embedding")
        if self.clearing and not isinstance(table_method, Embedding):
            self._clear_tables(undo)
        if isinstance(table_method, Embedding):
            self._fill_embedding(table_method, patch)
        if self.by_module:
            rotation.respin(model, self.sites, self._spectra(), undo)
        elif self.sites.rotary and self._native_rotation_goes() and not self.partial:
            rotation.clear(self.sites, undo)
        if self.clearing:
            for module in self.sites.bias.values():
                undo.freeze(module.get_parameter("weight"))
        self._states(patch)
        self._reindex(patch)
        patch.native = _native.write(model, patch, self)
        record = {
            "version": RECORD_VERSION,
            "native": patch.native,
            "base": patch.base,
            "stack": [{"method": method.name, **method.options()} for method in self.stack],
        }
        for _, config in patch.configs:
            if config is model.config:
                vars(config)["pospatch"] = record
        patch.snapshots = [dict(vars(config)) for _, config in patch.configs]

    def _native_rotation_goes(self) -> bool:
        """True where q and k are rotated by us or by nobody."""
        return bool(self.clearing) or self.top is not None or isinstance(self.slots.get("score"), Bands)

    def _clear_tables(self, undo: Undo) -> None:
        for table in self.sites.tables:
            embedding.clear(table, undo)
            embedding.regrow(table.parent, self.sites.host.buffers, embedding.UNBOUNDED, undo)

    def _fill_embedding(self, method: Embedding, patch: Patch) -> None:
        paired = bool(getattr(self.model.config, "is_encoder_decoder", False))
        firsts: dict[str, tuple[str, Geometry]] = {}
        for path, geometry in self.base.items():
            firsts.setdefault(stack_of(path, paired), (path, geometry))
        if self.sites.tables:
            for table in self.sites.tables:
                _, geometry = firsts[stack_of(table.path, paired)]
                key = (table.path, "weight")
                rows = method.table(geometry)
                patch.kept[key] = embedding.replace(table, rows, patch.undo, patch.kept.get(key))
                embedding.regrow(table.parent, self.sites.host.buffers, patch.kept[key].shape[0], patch.undo)
            return
        for path, geometry in firsts.values():
            layer = first_layer(self.model, path)
            key = (path, "table")
            patch.kept[key] = embedding.add(layer, method.table(geometry), patch.undo, patch.kept.get(key))

    def _reindex(self, patch: Patch) -> None:
        method = self.slots.get("positions")
        if not isinstance(method, Index):
            return
        paired = bool(getattr(self.model.config, "is_encoder_decoder", False))
        firsts: dict[str, Geometry] = {}
        for path, geometry in self.base.items():
            firsts.setdefault(stack_of(path, paired), geometry)
        for table in self.sites.tables if self._tables_read() else ():
            geometry = firsts[stack_of(table.path, paired)].with_(length=table.rows)
            patch.readers[table.path] = positions.at_table(table, method, geometry, patch.undo)
            if length := method.target_length(geometry):
                embedding.regrow(table.parent, self.sites.host.buffers, length, patch.undo)
        for path in self.sites.rotary if self._rotary_read() else ():
            geometry = next(iter(firsts.values()))
            patch.readers[path] = positions.at_rotary(self.model, path, method, geometry, patch.undo)

    def _spectra(self) -> dict[str | None, tuple[Tensor, float]]:
        """New frequencies by layer type; where a host has types, a scaling touches full attention only."""
        top: Rotary = self.top  # type: ignore[assignment]
        spectra: dict[str | None, tuple[Tensor, float]] = {}
        for path, geometry in self.layers.items():
            label = self._label(path, geometry)
            if label not in spectra and self._scales(top, label):
                source = geometry if isinstance(top, Scaling) else self.base[path]
                spectra[label] = top.frequencies(source)
        return spectra

    def _label(self, path: str, geometry: Geometry) -> str | None:
        from pospatch.engine._sites import inv_freqs, label_of

        labels = {label_of(name) for module in self.sites.rotary.values() for name in inv_freqs(module)}
        return None if None in labels else layer_type(self.sites.attention[path].config, geometry.layer)

    @staticmethod
    def _scales(top: Method, label: str | None) -> bool:
        return label is None or not isinstance(top, Scaling) or label == "full_attention"

    def _states(self, patch: Patch) -> None:
        for path, geometry in self.layers.items():
            module = self.sites.attention[path]
            acting = self._acting(path, geometry)
            still = (
                self.partial
                and any(geometry.layer in m.chosen(geometry.layers) for m in self.clearing)
                and bool(self.sites.rotary)
            )
            drop = bool(self.clearing) and bool(self.sites.bias)
            if not acting and not still and not drop and not (self.clearing and not self.by_module):
                continue
            layout = self.sites.host.layout if self.base[path].rotation is not None else "half"
            state = State(self._seen_by(path, geometry), acting, layout=layout, drop_bias=drop, still=still)
            self._give_weights(path, state, module, patch)
            patch.undo.set_attribute(module, "config", view(module.config))
            patch.undo.add_module(module, KEYWORD, state)
            patch.undo.hook(module.register_forward_pre_hook(carry, with_kwargs=True))

    def _seen_by(self, path: str, geometry: Geometry) -> Geometry:
        """`rope` itself sees the native rotation (its theta), what scales or re-indexes it sees what rope put there."""
        if (
            isinstance(self.top, Rotary)
            and self.top is self.slots.get("rotation")
            and not isinstance(self.slots.get("score"), Bands)
        ):
            return self.base[path].with_(table=None)
        return geometry.with_(table=None)

    def _acting(self, path: str, geometry: Geometry) -> dict[str, Method]:
        """The methods that act inside this layer's attention, by role."""
        chosen = {
            slot: method for slot, method in self.slots.items() if geometry.layer in method.chosen(geometry.layers)
        }
        acting: dict[str, Method] = {}
        if "score" in chosen:
            acting["score"] = chosen["score"]
        if "temperature" in chosen:
            acting["temperature"] = chosen["temperature"]
        if isinstance(self.top, Rotary) and not self.by_module:
            if self.top.slot in chosen and self._scales(self.top, self._label(path, geometry)):
                acting["rotary"] = self.top
            elif geometry.rotation is not None:
                acting["rotary"] = _Standing()
        elif isinstance(self.slots.get("score"), Bands) and geometry.rotation is not None:
            acting["rotary"] = _Standing()
        if isinstance(acting.get("score"), Bands) and isinstance(self.top, Rotary):
            acting["rotary"] = self.top if isinstance(self.top, Scaling) else _Standing()
        return acting

    def _give_weights(self, path: str, state: State, module: nn.Module, patch: Patch) -> None:
        example = next(module.parameters())
        for slot, method in state.methods.items():
            for name, initial in method.weights(state.geometry).items():
                key = (path, f"{slot}__{name}")
                if key not in patch.kept:
                    dtype = example.dtype if example.dtype.is_floating_point else torch.float32
                    patch.kept[key] = nn.Parameter(initial.to(device=example.device, dtype=dtype))
                state.register_parameter(key[1], patch.kept[key])

    # what is said ---------------------------------------------------------------------------------------------------------------

    def _trained_length(self) -> int | None:
        from pospatch.engine._geometry import trained_length

        lengths = {table.rows for table in self.sites.tables}
        return min(lengths) if lengths else trained_length(self.model.config.get_text_config())

    def _describe(self, patch: Patch) -> None:
        sites = self.sites
        natives = {
            "embedding": ", ".join(f"{type(t.module).__name__} of {t.rows}" for t in sites.tables[:1]),
            "rotation": ", ".join(sorted({type(module).__name__ for module in sites.rotary.values()})),
            "score": "relative bias" if sites.bias else "",
        }
        paths = {
            "positions": [*(t.path for t in sites.tables), *sites.rotary] if "positions" in self.slots else [],
            "embedding": [table.path for table in sites.tables],
            "rotation": list(sites.rotary),
            "score": list(sites.attention),
        }
        for site, slots in _SITES.items():
            now = [self.slots[slot].name for slot in slots if slot in self.slots]
            native = natives.get(site) or "none"
            stays = native if native != "none" and not self.clearing else "none"
            patch.sites.append(
                {"site": site, "native": native, "now": " + ".join(now) or stays, "modules": paths.get(site, [])}
            )


_SITES = {
    "positions": ("positions",),
    "embedding": ("embedding",),
    "rotation": ("rotation", "scaling"),
    "score": ("temperature", "score"),
}


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
    return Rotation(dim=dim, theta=theta, inv_freq=inv_freq, attention_factor=amplitude, rope_type=kind)


def first_layer(model: Any, path: str) -> nn.Module:
    """The block of the first attention: the first ancestor that stands in a list of blocks."""
    parts = path.split(".")
    for end, part in enumerate(parts):
        if part.isdigit():
            return model.get_submodule(".".join(parts[: end + 1]))
    return model.get_submodule(path)


def describe(model: Any) -> tuple[list[dict[str, Any]], int | None]:
    """The sites of an unpatched model and its trained length."""
    plan = _Plan(model, find(model), [], {})
    patch = Patch(stack=[])
    plan._describe(patch)
    return patch.sites, plan._trained_length()


class Trial:
    """Asks of many methods whether they would fit one model, with one survey and without changing it."""

    def __init__(self, model: Any, patch: Patch | None) -> None:
        self.model = model
        self.stack = patch.stack if patch is not None else []
        if patch is not None:
            assert patch.found is not None
            self.sites, self.layers = patch.found, patch.layers
        else:
            self.sites = find(model)
            self.layers = geometries(model, self.sites, survey(model, self.sites))

    def example(self, cls: type[Method]) -> dict[str, Any]:
        """Options with which a method can be tried here; required ones are 2 where the method does not say otherwise."""
        required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
        return cls.example(dict.fromkeys(required, 2), next(iter(self.layers.values())))

    def reason(self, name: str) -> str | None:
        """Why the method cannot be applied, or None where it can."""
        cls = registry.method_class(name)
        try:
            method = cls.from_options(self.example(cls))
            plan = _Plan(self.model, self.sites, merge(self.stack, [method]), self.layers)
            plan.check()
            plan.rehearse()
        except PospatchError as error:
            return str(error)
        return None


def _prove(model: Any, patch: Patch, plan: _Plan) -> None:
    """Every intended module is reached, and with our own methods silent nothing positional is left of the host."""
    states: dict[str, Any] = {
        path: m._modules[KEYWORD] for path, m in plan.sites.attention.items() if KEYWORD in m._modules
    }
    added = [module for module in model.modules() if isinstance(module, embedding.AddedTable)]
    ids = _probe.tokens(model)
    with _probe.quiet(model):
        if plan.by_module and not states and not patch.readers:
            return _prove_respun(model, ids)
        _probe.forward(model, ids)
        if missed := [path for path, reindex in patch.readers.items() if not reindex.reached]:
            raise SeamChanged(
                f"{missed[0]} was not asked for positions by {type(model).__name__}; it is left unpatched"
            )
        if missed := [path for path, state in states.items() if not state.reached]:
            raise SeamChanged(
                f"{missed[0]} was not reached by its attention function; {type(model).__name__} is left unpatched"
            )
        if (
            plan.clearing
            and not plan.partial
            and not plan.by_module
            and (not plan.sites.tables or "embedding" not in plan.slots)
        ):
            _prove_cleared(model, ids, [*states.values(), *added])


class _Reached(Exception):
    """Ends a proof forward early: what was to be shown has been seen."""


def _prove_respun(model: Any, ids: Tensor) -> None:
    """The new rotary module is what the model calls; the forward ends there."""

    def reached(module: nn.Module, args: Any, output: Any) -> None:
        raise _Reached

    respun = [module for module in model.modules() if isinstance(module, rotation.FrequencyModule)]
    for module in respun:
        handle = module.register_forward_hook(reached)
        try:
            _probe.forward(model, ids)
        except _Reached:
            continue
        finally:
            handle.remove()
        raise SeamChanged(
            f"{type(model).__name__} did not call its rotary module {type(module.host).__name__}; it is left unpatched"
        )


def _prove_cleared(model: Any, ids: Tensor, ours: list[Any]) -> None:
    """With ours silent and every token seeing every token, permuting the tokens must permute the output and do nothing else."""
    for item in ours:
        item.proof = True
    try:
        order = torch.arange(ids.shape[1] - 1, -1, -1, device=ids.device)
        straight, turned = _probe.forward(model, ids), _probe.forward(model, ids[:, order])
    finally:
        for item in ours:
            item.proof = False
    for name, value in straight.items():
        gap = (value[:, order].float() - turned[name].float()).abs().max().item()
        size = value.float().std().item() + 1e-12
        if not gap <= _TOLERANCE.get(value.dtype, 1e-3) * max(size, 1e-3):
            raise SeamChanged(
                f"{type(model).__name__} still knows positions after its known sites were cleared: permuted tokens change "
                f"{name} by {gap:.2e} (its spread is {size:.2e}); it is left unpatched"
            )


_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.float16: 0.05, torch.bfloat16: 0.3}
