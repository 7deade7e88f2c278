"""What a call of the whole model says of positions, for attention modules that are not handed it: an image's size, time steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from pospatch.engine._calls import here, named, parameters
from pospatch.engine._probe import Cut, cut_of
from pospatch.engine._view import real
from pospatch.errors import UnsupportedHost
from pospatch.geometry import Geometry

if TYPE_CHECKING:
    from pospatch.engine._state import State

__all__ = ["PIXELS", "Door", "door_around", "told"]

# images (batch, channels, height, width), spectrograms (batch, frames, bands)
PIXELS = ("pixel_values", "input_values")


class Said(NamedTuple):
    """What one call says: rows and columns of the patches of its images, and the time step of each step, (batch, steps)."""

    grid: tuple[int, int] | None = None
    steps: Tensor | None = None


@dataclass
class Door:
    """The module that images or time steps enter by, and what was said there, by thread, while it runs.

    Gradient checkpointing calls attention modules again when nothing runs here. A number of patches then says the grid, as
    long as it came with one shape of images only.

    Args:
        cut: how images are cut into patches, or None where the model takes none.
        argument: the argument that holds the time steps, or "".
    """

    cut: Cut | None = None
    argument: str = ""
    now: dict[int, Said] = field(default_factory=dict)
    grids: dict[int, set[tuple[int, int]]] = field(default_factory=dict)

    def begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: notes what the call says."""
        call = named(module, args, kwargs)
        said = Said(self._grid(call), call.get(self.argument) if self.argument else None)
        self.now[here()] = said
        if said.grid is not None and not torch.compiler.is_compiling():
            self.grids.setdefault(said.grid[0] * said.grid[1], set()).add(said.grid)

    def ends(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook: forgets."""
        self.now.pop(here(), None)

    def geometry(self, trained: Geometry, tokens: int) -> Geometry:
        """A layer's geometry for this call: the grid is that of its images."""
        if trained.grid is None or self.cut is None:
            return trained
        said, others = self.now.get(here(), Said()), trained.prefix + trained.suffix
        grid = said.grid if said.grid is not None else self._remembered(trained, tokens - others)
        if tokens - grid[0] * grid[1] != others:
            raise UnsupportedHost(
                f"an image of {grid[0]} by {grid[1]} patches came with {tokens} tokens, of which {others} should be no "
                "patches; where each patch stands is not known"
            )
        return trained if grid == trained.grid else trained.with_(grid=grid)

    def steps(self, tokens: int) -> Tensor | None:
        """The position (batch, tokens) of each token: the time step that it belongs to; None where the model has none."""
        if not self.argument:
            return None
        steps = self.now.get(here(), Said()).steps
        if steps is None:
            raise UnsupportedHost(
                f"positions of this model are its {self.argument!r}, and an attention module was called without them; call the "
                "whole model, without gradient checkpointing"
            )
        return steps.repeat_interleave(tokens // steps.shape[1], dim=1)

    def _grid(self, call: dict[str, Any]) -> tuple[int, int] | None:
        pixels = next((call[name] for name in PIXELS if torch.is_tensor(call.get(name))), None)
        if self.cut is None or pixels is None or pixels.dim() not in (3, 4):
            return None
        height, width = pixels.shape[2:] if pixels.dim() == 4 else (pixels.shape[2], pixels.shape[1])
        return self.cut.grid(height, width)

    def _remembered(self, trained: Geometry, patches: int) -> tuple[int, int]:
        assert trained.grid is not None
        rows, columns = trained.grid
        found = self.grids.get(patches) or ({(rows, columns)} if patches == rows * columns else set())
        if len(found) == 1:
            return next(iter(found))
        shapes = f"images of {len(found)} shapes have so many" if found else "no image had so many"
        raise UnsupportedHost(
            f"attention over {patches} patches outside a forward of the model, and {shapes}: which row each one is in is not "
            "known. Train on images of changing shape without gradient checkpointing, and call the model with pixel_values"
        )


def told(state: State, positions: Tensor | None, hidden: Tensor) -> tuple[Geometry, Tensor | None]:
    """A layer's geometry and the positions of this call, from what came with it, the model's door, or the caller."""
    if state.proof:
        return state.geometry, positions
    geometry = state.geometry
    if state.door is not None:
        geometry = state.door.geometry(geometry, hidden.shape[1])
        steps = state.door.steps(hidden.shape[1])
        positions = positions if steps is None else steps
    where = state.given.read(hidden)
    return geometry, positions if where is None else where


def door_around(model: nn.Module, path: str, argument: str) -> tuple[str, Door] | None:
    """The innermost module around an attention that images or time steps enter by, and a door for it; None where neither do."""
    holder = path
    while holder:
        holder = holder.rpartition(".")[0]
        module = model.get_submodule(holder)
        names = set(parameters(module))
        if argument and argument in names:
            return holder, Door(argument=argument)
        config: Any = real(getattr(module, "config", None))
        if not names.isdisjoint(PIXELS) and config is not None and (cut := cut_of(config)) is not None:
            return holder, Door(cut=cut)
    return None
