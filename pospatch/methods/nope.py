from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pospatch.errors import UnsupportedHost
from pospatch.geometry import Geometry
from pospatch.methods._base import Nothing
from pospatch.methods._options import flag


@dataclass(frozen=True, kw_only=True)
class NoPE(Nothing):
    """No positional encoding: every native mechanism is cleared and the causal mask alone tells the order.

    logits[m, n] = scaling * q[m] . k[n]

    Source: The Impact of Positional Encoding on Length Generalization in Transformers, arXiv 2305.19466;
        recalibration of pretrained models: DroPE, arXiv 2512.12167.

    Args:
        allow_bidirectional: accept two-sided attention, where the result no longer depends on the order of the
            tokens at all. For experiments and tests.

    Raises:
        UnsupportedHost: two-sided attention without `allow_bidirectional`.
    """

    causal_only: ClassVar[bool] = True
    source: ClassVar[str] = "NoPE, arXiv 2305.19466; DroPE, arXiv 2512.12167"

    allow_bidirectional: bool = flag(False)

    def fits(self, geometry: Geometry) -> None:
        if not geometry.causal and not self.allow_bidirectional:
            raise UnsupportedHost(
                f"{self.name}: two-sided attention without positions cannot tell any order of the tokens (its output "
                "is permutation equivariant); choose another method, or pass allow_bidirectional=True for an experiment"
            )
