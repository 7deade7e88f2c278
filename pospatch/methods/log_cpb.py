from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.errors import UnsupportedHost
from pospatch.geometry import Geometry
from pospatch.methods._base import Bias, Weights
from pospatch.methods._distance import by_offset, distances, linear_start
from pospatch.methods._grid import coordinates, prefix_of
from pospatch.methods._options import flag, integer


@dataclass(frozen=True, kw_only=True)
class LogCPB(Bias):
    """Log-spaced continuous position bias: a small network reads the signed logarithm of the distance, so that windows of
    any size share it.

    bias[:, m, n] = out @ relu(weight @ x + shift),  x = sign(r) * ln(1 + |r|)
    axes 1: r = m - n; axes 2: r = (rows between the patches, columns between them)

    Source: Swin Transformer V2, arXiv 2111.09883, equations 3 and 4.

    Args:
        axes: 1 for text; 2 for patches of an image, counted row by row.
        hidden: width of the network, 1 to 4096; 512 in the paper.
        prefix: axes 2: tokens before the first patch (class token, registers), whose pairs get no bias; None is what this
            model has there.
        columns: axes 2: patches in a row; None reads it from the size of the images of each call.
        zero_init: start as no positions at all (`out` is zero), which is the identity over `nope`; False starts as the paper
            does, from a random network.
        seed: of the random start; layers differ.

    Departs: as in the paper's equation; the authors' code also divides r by the size of the window and passes the result
        through 16 * sigmoid, which goes with its cosine attention.

    Raises:
        UnsupportedHost: axes 2 and the model has no 2-D grid of patches.
    """

    source: ClassVar[str] = "Swin V2 (log-CPB), arXiv 2111.09883, equations 3 and 4"

    axes: int = integer(1, low=1, high=2)
    hidden: int = integer(512, high=4096)
    prefix: int | None = integer(None, low=0, optional=True)
    columns: int | None = integer(None, optional=True)
    zero_init: bool = flag(True)
    seed: int = integer(0, low=0)

    @property
    def reads_grid(self) -> bool:
        return self.axes == 2

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        if self.axes == 2 and (geometry.grid is None or len(geometry.grid) != 2):
            raise UnsupportedHost(
                f"log_cpb with axes=2 places patches of an image and this model has no 2-D grid (got {geometry.grid}); "
                "text takes axes=1"
            )

    def weights(self, geometry: Geometry) -> dict[str, Tensor]:
        """weight (hidden, axes), shift (hidden,), out (heads, hidden)."""
        generator = torch.Generator("cpu").manual_seed(self.seed * 100_003 + geometry.layer)
        weight = linear_start(self.hidden, self.axes, generator)
        shift = linear_start(self.hidden, self.axes, generator)[:, 0].clone()
        out = linear_start(geometry.heads, self.hidden, generator)
        return {"weight": weight, "shift": shift, "out": torch.zeros_like(out) if self.zero_init else out}

    def profile(self, weights: Weights, geometry: Geometry) -> Callable[[Tensor], Tensor] | None:
        return (lambda r: self.network(weights, r.float())) if self.axes == 1 else None

    def network(self, weights: Weights, *offsets: Tensor) -> Tensor:
        """Offsets in nats (..., heads) for distances in tokens along each axis."""
        w = {name: value.float() for name, value in weights.items()}
        x = torch.stack([r.sign() * torch.log1p(r.abs()) for r in offsets], dim=-1)
        hidden = torch.relu(torch.nn.functional.linear(x, w["weight"], w["shift"]))
        return torch.nn.functional.linear(hidden, w["out"])

    def bias(self, query_positions: Tensor, key_positions: Tensor, weights: Weights, geometry: Geometry) -> Tensor:
        if self.axes == 1:
            return super().bias(query_positions, key_positions, weights, geometry)
        prefix = prefix_of(self.prefix, geometry)
        query = coordinates(query_positions, geometry, prefix, self.columns)
        key = coordinates(key_positions, geometry, prefix, self.columns)
        rows, columns = (distances(q, k).long() for q, k in zip(query, key, strict=True))
        width = 2 * (self.columns or geometry.grid[1]) - 1  # type: ignore[index]
        # both offsets as one number, so that the network runs once for each offset and not for each pair
        value = by_offset(
            rows * width + columns + width // 2,
            lambda r: self.network(weights, (r // width).float(), (r % width - width // 2).float()),
        )
        held = (query_positions < prefix)[:, :, None] | (key_positions < prefix)[:, None, :]
        return value.masked_fill(held[:, None], 0.0)
