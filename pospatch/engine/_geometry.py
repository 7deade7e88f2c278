"""The geometry of every attention layer, from what the survey saw and what the sites and configs say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from pospatch.engine._layout import UNKNOWN, measured
from pospatch.engine._patches import tokens_before
from pospatch.engine._probe import grid_of
from pospatch.engine._sites import Sites, rotations, stack_of
from pospatch.engine._survey import Seen
from pospatch.engine._view import real
from pospatch.geometry import Geometry, Rotation

__all__ = ["geometries", "layer_type", "trained_length"]

PREFIX = 16  # tokens that are no patches (class tokens, registers), before and after them together

LENGTH_FIELDS = ("max_ep_len", "max_position_embeddings", "n_positions", "max_target_positions", "max_source_positions")


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
    tables = {stack_of(table.path, paired): table for table in reversed(sites.tables)}
    found = {}
    for stack, paths in stacks.items():
        table, prefix = tables.get(stack), 0
        for layer, path in enumerate(paths):
            config = _config(model, sites.attention[path])
            facts = seen[path]
            grid = _grid(config, facts.length)
            if grid is not None and layer == 0:
                prefix = tokens_before(model, sites, path, grid, facts.length)
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
                rotation=_rotation(native, config, layer, facts),
                table=table.matrix()[table.offset :].float() if table is not None else None,
                grid=grid,
                prefix=prefix,
                suffix=0 if grid is None else facts.length - grid[0] * grid[1] - prefix,
            )
    return found


def _config(model: Any, module: Any) -> Any:
    return real(getattr(module, "config", None) or model.config)


def _grid(config: Any, length: int) -> tuple[int, ...] | None:
    """The patches of the config's image, where this attention runs over them and a few tokens before them."""
    grid = grid_of(config)
    return grid if grid is not None and 0 <= length - grid[0] * grid[1] <= PREFIX else None


def _rotation(native: dict[str | None, Rotation], config: Any, layer: int, facts: Seen) -> Rotation | None:
    """What rotates in one layer, with the pairing that the survey measured."""
    rotation = _of_layer(native, config, layer) if facts.rotates else None
    if rotation is None or (facts.turn is None and not facts.surveyed):
        return rotation
    if facts.turn is None:
        return replace(rotation, layout=UNKNOWN)
    positions = torch.arange(facts.turn[0].shape[2], device=facts.turn[0].device)[None]
    return replace(rotation, layout=measured(facts.turn, rotation, positions))


def layer_type(config: Any, layer: int) -> str | None:
    """The layer type of a layer, where the config has types."""
    types = getattr(config, "layer_types", None)
    return types[layer] if types and layer < len(types) else None


def _of_layer(native: dict[str | None, Rotation], config: Any, layer: int) -> Rotation | None:
    if None in native:
        return native[None]
    return native.get(layer_type(config, layer))
