from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, pad

from pospatch import registry
from pospatch.errors import BadOption
from pospatch.geometry import Geometry
from pospatch.methods._base import Bias, Block, Contextual, Weights
from pospatch.methods._content import seeded
from pospatch.methods._options import integer, word

INNER = "inner_"  # the inner bias' learned tensors stand beside ours under this prefix


@dataclass(frozen=True, kw_only=True)
class DAPE(Contextual):
    """Data-adaptive positional encoding: a small network over the heads corrects a relative bias by the scores themselves.

    logits[m, n] = A + B + last(leaky_relu(first([A; B]))), with A[h] = scaling * q[m] . k[n] and B[h] an inner bias
    first and last map the 2 * heads numbers of a pair to `hidden` and to heads; with kernel_size k above 1 they are 1 x k
    convolutions along the keys.

    Source: DAPE, arXiv 2405.14722, equation 2; DAPE V2, arXiv 2410.04798, for the convolutions, as in the authors' code.

    Args:
        bias: name of the method that gives B, any relative bias of the registry with its default options; kerple_log, fire
            and alibi in the paper.
        hidden: width of the network, 1 to 1024; 32 in the paper.
        kernel_size: keys that the convolutions span, odd, 1 to 15; 1 is DAPE, 3 is DAPE V2.
        seed: of the numbers that `first` starts from.

    Departs: `last` starts at zero, so that the start is the inner bias alone. Pairs that are masked are zero in the input
        of both convolutions, where V2 zeroes them in the first alone: so a query never reads later keys, nor padding, and
        decoding equals one pass. A host's softcap acts on A.

    Raises:
        BadOption: `bias` is not a relative bias, or kernel_size is even.
        UnsupportedHost: the attention is two-sided.
    """

    causal_only: ClassVar[bool] = True
    cap_first: ClassVar[bool] = True
    source: ClassVar[str] = "DAPE, arXiv 2405.14722, equation 2; V2: arXiv 2410.04798"

    bias: str = word("kerple_log")
    hidden: int = integer(32, high=1024)
    kernel_size: int = integer(1, high=15)
    seed: int = integer(0, low=0)

    def check(self) -> None:
        if self.kernel_size % 2 == 0:
            raise BadOption(f"{self.name}: kernel_size={self.kernel_size} must be odd, so that it has a middle")
        if self.bias not in registry.names() or not issubclass(registry.method_class(self.bias), Bias):
            valid = [name for name in registry.names() if issubclass(registry.method_class(name), Bias)]
            raise BadOption(f"{self.name}: bias={self.bias!r} must be a relative bias: {', '.join(valid)}")
        object.__setattr__(self, "_inner", registry.build(self.bias))

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        self.inner().fits(geometry)

    def inner(self) -> Bias:
        """The method that gives B."""
        return self._inner  # type: ignore[attr-defined,no-any-return]

    def weights(self, geometry: Geometry) -> dict[str, Tensor]:
        heads, k = geometry.heads, self.kernel_size
        std = (2 * heads * k) ** -0.5
        own = {
            "first": seeded(self.hidden, 2 * heads, k, std=std, seed=self.seed * 100_003 + geometry.layer),
            "first_bias": torch.zeros(self.hidden),
            "last": torch.zeros(heads, self.hidden, k),
            "last_bias": torch.zeros(heads),
        }
        return own | {INNER + name: value for name, value in self.inner().weights(geometry).items()}

    def planes(self, geometry: Geometry) -> int:
        return 6 + -(-3 * self.hidden // geometry.heads)

    def logits(self, block: Block, weights: Weights, geometry: Geometry) -> Tensor:
        given = {name.removeprefix(INNER): value for name, value in weights.items() if name.startswith(INNER)}
        bias = self.inner().bias(block.query_positions, block.key_positions, given, geometry).float()
        scores = block.scores
        pairs = torch.cat((scores, bias.expand_as(scores)), dim=1).masked_fill(~block.allowed, 0.0)
        middle = leaky_relu(self._along_keys(pairs, weights["first"], weights["first_bias"]))
        middle = middle.masked_fill(~block.allowed, 0.0)
        return scores + bias + self._along_keys(middle, weights["last"], weights["last_bias"])

    def _along_keys(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(batch, channels, query, key) through a 1 x kernel_size convolution, in float32 also under autocast.

        A product a tap: blocks of causal queries all have shapes of their own, and a convolution is prepared anew for each.
        """
        side, keys = self.kernel_size // 2, x.shape[3]
        padded = pad(x, (side, side)) if side else x
        total = bias.float()[:, None, None]
        with torch.autocast(x.device.type, enabled=False):
            for tap in range(self.kernel_size):
                part = padded[..., tap : tap + keys].flatten(2)
                total = total + torch.matmul(weight[:, :, tap].float(), part).unflatten(2, x.shape[2:])
        return total
