"""The kinds before attention: which position a token gets, and a vector for each position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.geometry import Geometry
from pospatch.methods._method import Method, Weights

__all__ = ["Embedding", "Forward", "Index"]


@dataclass(frozen=True)
class Forward:
    """What one forward of the model knows besides positions; made when it begins, gone when it ends.

    Args:
        seed: of the draw of this forward, or None in evaluation, where nothing is random.
        rows: number of sequences.
        real: bool (batch, length), False at pads; None where the call came without a mask.
        tokens: ids of all tokens so far (batch, cached + length), -1 at pads; None where the method reads none.
    """

    seed: int | None = None
    rows: int = 1
    real: Tensor | None = None
    tokens: Tensor | None = None

    def to(self, device: torch.device) -> Forward:
        """The same with its tensors on a device."""
        real, tokens = (None if held is None else held.to(device) for held in (self.real, self.tokens))
        return Forward(seed=self.seed, rows=self.rows, real=real, tokens=tokens)

    def generator(self) -> torch.Generator | None:
        """A generator on the CPU at the start of this forward's draw, the same for all who ask; None in evaluation."""
        return None if self.seed is None else torch.Generator().manual_seed(self.seed)


class Index(Method):
    """Changes which position each token gets, where the table or the rotation reads it; native mechanism stays.

    training_only: True where positions are drawn at random while training and are the true ones in evaluation, so that
        a checkpoint needs nothing of the method.
    by_row: True where the method needs to know the tokens of each row, so that a pad is told from a token.
    by_token: True where it reads the token ids.
    two_levels: True where absolute and relative positions differ, so that both must be read.
    """

    slot: ClassVar[str] = "positions"
    clears: ClassVar[bool] = False
    training_only: ClassVar[bool] = False
    by_row: ClassVar[bool] = False
    by_token: ClassVar[bool] = False
    two_levels: ClassVar[bool] = False

    def positions(self, positions: Tensor, geometry: Geometry, forward: Forward) -> Tensor:
        """New positions for true ones, both (batch, length), in tokens; floating point where they are fractions.

        `geometry.length` is the number of positions that are known where they are read: rows of the table, or what the
        rotary encoding reaches.
        """
        raise NotImplementedError

    def relative(self, positions: Tensor, geometry: Geometry, forward: Forward) -> Tensor:
        """New positions where only differences count, in a rotation or a bias; those of a table where they are the same."""
        return self.positions(positions, geometry, forward)

    def furthest(self, geometry: Geometry) -> int | None:
        """Number of positions that the method gives out, so that the last is one less; None where it goes no further
        than the tokens it is given."""
        return None

    def target_length(self, geometry: Geometry) -> int | None:
        """The length in tokens that the model can read afterwards, or None where it stays."""
        return None


class Embedding(Method):
    """A vector for each position, added to the token embedding: a table of as many rows as the method is asked for.

    fixed: True where the rows are computed, so that training leaves them as they are.
    """

    slot: ClassVar[str] = "embedding"
    fixed: ClassVar[bool] = False

    def rows(self, geometry: Geometry) -> int:
        """Number of rows of the table, so of positions that the model can read afterwards."""
        raise NotImplementedError

    def table(self, geometry: Geometry) -> Tensor:
        """The rows to add, (rows, width) float32; `geometry.table` holds the trained rows where there are any."""
        raise NotImplementedError

    def vectors(self, rows: Tensor, weights: Weights) -> Tensor:
        """What is added, from the rows (batch, length, width) that were read; called where the method has weights."""
        return rows

    def reading(self, geometry: Geometry) -> Index | None:
        """How the rows are chosen, where row n is not always position n; None where it is."""
        return None
