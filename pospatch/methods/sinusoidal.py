from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pospatch.errors import BadOption, UnsupportedHost
from pospatch.geometry import Geometry
from pospatch.methods._base import Embedding, Weights
from pospatch.methods._options import choice, flag, integer, number


@dataclass(frozen=True, kw_only=True)
class Sinusoidal(Embedding):
    """Fixed sines and cosines of position, in geometrically spaced wavelengths.

    "interleaved": table[n, 2i] = sin(n * base ** (-2i / width)), table[n, 2i + 1] = cos(the same)
    "half":        sines in the first half of the width, cosines in the second
    "whisper":     as "half", with frequencies exp(-i * ln(base) / (width / 2 - 1))
    axes 2:        the first half of the width is such a vector of the patch's row, the second of its column

    Source: Attention Is All You Need, arXiv 1706.03762, section 3.5; "half" as in Marian, Pegasus and XGLM; "whisper" as
        in arXiv 2212.04356; axes 2 as in Masked Autoencoders, arXiv 2111.06377, appendix A.1.

    Args:
        length: rows in tokens; None is the trained length.
        layout: which of the three.
        scale: factor on the vectors, to match the size of the host's embeddings, above 0; None is 1, and width ** -0.5
            where it is learned.
        learned_scale: True makes the scale one learned number, which then starts at `scale`; the sines stay fixed.
        base: the paper's 10000.
        axes: 1 for tokens in a row; 2 for patches of an image, where tokens that are no patches get zeros.

    Departs: the paper multiplies the token embeddings by sqrt(width) instead of making the sines smaller. With axes 2 the
        model resizes the rows for images of another size as it resizes its own, by bicubic interpolation.

    Raises:
        BadOption: axes 2 with a length: the image has as many patches as it has.
        UnsupportedHost: odd width, or one that is no multiple of 4 with axes 2; axes 2 without a grid of patches.
    """

    family: ClassVar[str] = "absolute"
    source: ClassVar[str] = "Attention Is All You Need, arXiv 1706.03762, section 3.5"
    fixed: ClassVar[bool] = True

    length: int | None = integer(None, low=2, high=2**22, optional=True)
    layout: str = choice("interleaved", "interleaved", "half", "whisper")
    scale: float | None = number(None, above=0.0, high=1e6, optional=True)
    learned_scale: bool = flag(False)
    base: float = number(10000.0, above=1.0, high=1e12)
    axes: int = integer(1, low=1, high=2)

    @property
    def reads_grid(self) -> bool:
        return self.axes == 2

    def check(self) -> None:
        if self.axes == 2 and self.length is not None:
            raise BadOption(f"sinusoidal: axes=2 has a row for each patch of an image; leave length={self.length} out")

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        step = 2 * self.axes
        if geometry.width % step or geometry.width < 2 * step:
            wanted = "even" if self.axes == 1 else "a multiple of 4"
            raise UnsupportedHost(f"sinusoidal: width {geometry.width} must be {wanted} and at least {2 * step}")
        if self.axes == 2 and (geometry.grid is None or len(geometry.grid) != 2):
            raise UnsupportedHost(
                f"sinusoidal with axes=2 places patches of an image and this model has no 2-D grid (got {geometry.grid}); "
                "text takes axes=1"
            )

    def rows(self, geometry: Geometry) -> int:
        return self.length or geometry.length

    def table(self, geometry: Geometry) -> Tensor:
        if self.axes == 1:
            return self._waves(self.rows(geometry), geometry.width)
        self.fits(geometry)
        rows, columns = geometry.grid  # type: ignore[misc]
        half = geometry.width // 2
        row, column = self._waves(rows, half), self._waves(columns, half)
        pairs = torch.cat((row[:, None].expand(-1, columns, -1), column[None].expand(rows, -1, -1)), dim=-1)
        # registers that enter behind the table have no rows in it, so no more stand before than it has
        others = geometry.length - rows * columns
        before = min(geometry.prefix, others)
        return F.pad(pairs.flatten(0, 1), (0, 0, before, others - before))

    def _waves(self, count: int, width: int) -> Tensor:
        """Vectors (count, width) of the numbers 0, 1, ..."""
        half = width // 2
        steps = half - 1 if self.layout == "whisper" else half
        index = torch.arange(half, dtype=torch.float64)
        angles = torch.arange(count, dtype=torch.float64)[:, None]
        angles = angles * torch.exp(-index * math.log(self.base) / steps)
        parts = (angles.sin(), angles.cos())
        table = torch.stack(parts, dim=-1).flatten(1) if self.layout == "interleaved" else torch.cat(parts, dim=-1)
        return (table if self.learned_scale else table * (self.scale or 1.0)).float()

    def weights(self, geometry: Geometry) -> dict[str, Tensor]:
        start = self.scale or geometry.width**-0.5
        return {"scale": torch.tensor([start])} if self.learned_scale else {}

    def vectors(self, rows: Tensor, weights: Weights) -> Tensor:
        return rows * weights["scale"]
