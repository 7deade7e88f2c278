from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._base import Forward, Index
from pospatch.methods._options import integers


@dataclass(frozen=True, kw_only=True)
class BiPE(Index):
    """BiPE: a token's place in its sentence is an absolute position, the number of its sentence a relative one.

    table:             position[n] = tokens of n's segment before n, at most the last row
    rotation or bias:  position[n] = segments before n's

    A segment ends with a delimiter. Stands on a table and on a relative method: apply(model, ["learned", "rope",
    ("bipe", {"delimiters": [13, 869]})]) is BiPE-RoPE, with "alibi" instead of "rope" BiPE-ALiBi.

    Source: Two Stones Hit One Bird: Bilevel Positional Encoding for Better Length Extrapolation, arXiv 2401.16421,
        section 3.2, with the segments of the authors' training code.

    Args:
        delimiters: ids of the tokens that end a segment; the authors take the full stop and the line break (869 and 13
            of Llama's tokenizer).

    Departs: none. Packed documents each start a segment of their own; pads belong to none.

    Raises:
        BadOption: no delimiter.
        UnsupportedHost: the stack has no table or no relative method; a call with inputs_embeds; a cache that this model
            did not fill.
    """

    family: ClassVar[str] = "hierarchical"
    source: ClassVar[str] = "Bilevel Positional Encoding, arXiv 2401.16421, section 3.2"
    by_token: ClassVar[bool] = True
    two_levels: ClassVar[bool] = True

    delimiters: tuple[int, ...] = integers()

    def check(self) -> None:
        if not self.delimiters:
            raise BadOption("bipe: delimiters=[] ends no segment; give the ids of the full stop and the line break")

    @classmethod
    def example(cls, options: dict[str, object], geometry: Geometry) -> dict[str, object]:
        return {**options, "delimiters": [2]}

    def positions(self, positions: Tensor, geometry: Geometry, forward: Forward) -> Tensor:
        starts, number = self._starts(positions, forward)
        since = number - torch.where(starts, number, 0).cummax(dim=1).values
        return since[:, -positions.shape[1] :].clamp(max=geometry.length - 1)

    def relative(self, positions: Tensor, geometry: Geometry, forward: Forward) -> Tensor:
        starts, number = self._starts(positions, forward)
        segment = (starts & (number > 0)).long().cumsum(dim=1)
        return segment[:, -positions.shape[1] :]

    def _starts(self, positions: Tensor, forward: Forward) -> tuple[Tensor, Tensor]:
        """For all tokens so far: whether one starts a segment, and how many stand before it, pads not counted."""
        assert forward.tokens is not None
        tokens = forward.tokens
        number = ((tokens >= 0).long().cumsum(dim=1) - 1).clamp(min=0)
        ends = torch.isin(tokens, torch.tensor(self.delimiters, device=tokens.device))
        starts = torch.nn.functional.pad(ends[:, :-1], (1, 0))
        length = positions.shape[1]
        starts[:, -length:] |= (positions == 0) & (tokens[:, -length:] >= 0)
        return starts, number
