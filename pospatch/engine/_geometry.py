"""The geometry of every attention layer, seen in one small forward rather than guessed from names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn as nn
from torch import Tensor

from pospatch.engine import _probe
from pospatch.engine._seams import KEYWORD, is_cross, register
from pospatch.engine._sites import Sites, rotations, stack_of
from pospatch.engine._undo import Undo
from pospatch.engine._view import real, view
from pospatch.errors import UnsupportedHost
from pospatch.geometry import Geometry, Rotation

__all__ = ["Survey", "geometries", "trained_length"]

LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_target_positions", "max_source_positions")


@dataclass
class Survey:
    """Records what reaches one attention module's function."""

    path: str
    seen: dict[str, Seen]
    width: int = 0

    def see(self, module: nn.Module, query: Tensor, key: Tensor, kwargs: dict[str, Any]) -> None:
        causal = kwargs.get("is_causal")
        self.seen[self.path] = Seen(
            heads=query.shape[1],
            kv_heads=key.shape[1],
            head_dim=query.shape[-1],
            width=self.width,
            scaling=kwargs.get("scaling") or query.shape[-1] ** -0.5,
            causal=bool(getattr(module, "is_causal", True) if causal is None else causal),
            window=kwargs.get("sliding_window"),
        )


@dataclass(frozen=True)
class Seen:
    """Shapes and flags of one attention call."""

    heads: int
    kv_heads: int
    head_dim: int
    width: int
    scaling: float
    causal: bool
    window: int | None = None


def survey(model: Any, sites: Sites) -> dict[str, Seen]:
    """What each self-attention module hands to its function; modules that only attend to another sequence are left out.

    Raises:
        UnsupportedHost: a module was never reached, or does not hand keyword arguments on.
    """
    register()
    undo = Undo()
    seen: dict[str, Seen] = {}
    crossing: set[str] = set()
    called: set[str] = set()
    try:
        for path, module in sites.attention.items():
            undo.set_attribute(module, "config", view(module.config))
            undo.hook(module.register_forward_pre_hook(_watch(path, seen, crossing, called), with_kwargs=True))
        with _probe.quiet(model):
            _probe.forward(model, _probe.tokens(model))
    finally:
        undo.play()
    for path in crossing - set(seen):
        del sites.attention[path]
    for path, module in sites.attention.items():
        if path not in seen:
            how = "does not hand keyword arguments to its attention function" if path in called else "was not called"
            raise UnsupportedHost(
                f"{path} ({type(module).__name__}) {how}, so nothing positional can reach it; {type(model).__name__} is refused"
            )
    return seen


def declared(sites: Sites) -> dict[str, Seen]:
    """What the configs say, for methods that only need the rotary module's own facts: no forward is run."""
    return {path: _declared(module, real(module.config)) for path, module in sites.attention.items()}


def _declared(module: nn.Module, config: Any) -> Seen:
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return Seen(
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=head_dim,
        width=int(config.hidden_size),
        scaling=float(getattr(module, "scaling", None) or head_dim**-0.5),
        causal=bool(getattr(module, "is_causal", True)),
    )


def _watch(path: str, seen: dict[str, Seen], crossing: set[str], called: set[str]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        called.add(path)
        if is_cross(kwargs):
            crossing.add(path)
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        return args, {**kwargs, KEYWORD: Survey(path, seen, hidden.shape[-1])}

    return hook


def trained_length(config: Any) -> int | None:
    """The length in tokens that the config says the model was trained for, or None where it says nothing."""
    for name in LENGTH_FIELDS:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def geometries(model: Any, sites: Sites, seen: dict[str, Seen]) -> dict[str, Geometry]:
    """One Geometry an attention module, by path."""
    paired = bool(getattr(model.config, "is_encoder_decoder", False))
    stacks: dict[str, list[str]] = {}
    for path in sites.attention:
        stacks.setdefault(stack_of(path, paired), []).append(path)
    native = rotations(sites)
    tables = {stack_of(table.path, paired): table for table in sites.tables}
    found = {}
    for stack, paths in stacks.items():
        table = tables.get(stack)
        for layer, path in enumerate(paths):
            config = real(sites.attention[path].config)
            facts = seen[path]
            length = table.rows if table is not None else trained_length(config) or 512
            found[path] = Geometry(
                layer=layer,
                layers=len(paths),
                heads=facts.heads,
                kv_heads=facts.kv_heads,
                head_dim=facts.head_dim,
                width=facts.width,
                length=length,
                causal=facts.causal,
                window=facts.window,
                scaling=facts.scaling,
                rotation=_of_layer(native, config, layer),
                table=table.weight.detach()[table.offset :].float() if table is not None else None,
            )
    return found


def layer_type(config: Any, layer: int) -> str | None:
    """The layer type of a layer, where the config has types."""
    types = getattr(config, "layer_types", None)
    return types[layer] if types and layer < len(types) else None


def _of_layer(native: dict[str | None, Rotation], config: Any, layer: int) -> Rotation | None:
    if None in native:
        return native[None]
    return native.get(layer_type(config, layer))
