from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.errors import BadOption
from pospatch.methods._draw import Drawn


@dataclass(frozen=True, kw_only=True)
class Randomized(Drawn):
    """Randomized positions: in training, tokens stand at a sorted random sample of a much longer range of positions.

    position = sort(sample of C of {0 .. length - 1} without replacement), C the tokens; new for each sequence and step

    In evaluation positions are the true ones, to the bit.

    Source: Randomized Positional Encodings Boost Length Generalization of Transformers, arXiv 2305.16843, section 3.1.

    Args:
        length: size of the range, L in the paper, at least the longest training sequence; None is what the model reads
            with the methods that stand beside this one. The paper takes 2048 for sequences of up to 40 in training and
            500 in tests. Draws come from torch's default generator.

    Departs: the paper draws in evaluation too; here evaluation counts from 0 by 1, so that nothing is random and cached
        decoding equals one pass. Positions count from 0, the paper's from 1. Packed documents share a draw a row.

    Raises:
        BadOption: a training sequence longer than `length`, or length beyond the rows of the host's table.
    """

    source: ClassVar[str] = "Randomized Positional Encodings, arXiv 2305.16843, section 3.1"

    def drawn(self, positions: Tensor, tokens: Tensor, reach: int, draw: torch.Generator) -> Tensor:
        most = int(tokens.max())
        if most > reach:
            raise BadOption(
                f"randomized: a training sequence of {most} tokens cannot stand at a sample of {reach} positions; "
                f"apply it with length={most} or more, or train on shorter sequences"
            )
        keys = torch.rand(tokens.shape[0], reach, generator=draw)
        sample = keys.topk(most, dim=1).indices.to(positions.device)
        beyond = torch.arange(most, device=positions.device) >= tokens  # rows with fewer tokens draw fewer
        sample = sample.masked_fill(beyond, reach).sort(dim=1).values.clamp(max=reach - 1)
        return sample.gather(1, positions.clamp(max=most - 1).expand(tokens.shape[0], -1))
