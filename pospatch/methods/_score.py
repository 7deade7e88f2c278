"""The kinds at the score whose formula knows positions alone: factors of q, offsets, ranges of distance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pospatch.errors import UnsupportedHost
from pospatch.geometry import Geometry
from pospatch.methods._distance import by_distance
from pospatch.methods._method import Method, Weights
from pospatch.methods._rotary import needs_fixed

__all__ = ["Band", "Bands", "Bias", "Fold", "Norm", "QueryScale"]


class QueryScale(Method):
    """Multiplies q by a factor of its position; acts before everything else at the score site."""

    slot: ClassVar[str] = "temperature"
    family: ClassVar[str] = "scaling"
    clears: ClassVar[bool] = False
    needs: ClassVar[str] = "nothing"

    def factor_at(self, query_positions: Tensor, geometry: Geometry) -> Tensor:
        """Factors (batch, query) float32 for positions (batch, query)."""
        raise NotImplementedError


class Norm(Method):
    """Multiplies each head of q and k by a number made of its own content, which a rotation leaves as it is; acts before
    everything else at the score site, so that it does not matter whether the cache holds rotated keys."""

    slot: ClassVar[str] = "norm"
    family: ClassVar[str] = "scaling"
    clears: ClassVar[bool] = False

    def normed(self, x: Tensor, side: str, weights: Weights) -> Tensor:
        """q or k (batch, heads, length, head_dim), scaled; `side` is "query" or "key"."""
        raise NotImplementedError


class Bias(Method):
    """Adds an offset in nats to each logit, after the scaling by 1/sqrt(head_dim)."""

    slot: ClassVar[str] = "score"
    family: ClassVar[str] = "relative"

    def bias(self, query_positions: Tensor, key_positions: Tensor, weights: Weights, geometry: Geometry) -> Tensor:
        """Offsets (batch or 1, heads, query, key) float32 for positions (batch, query) and (batch, key)."""
        profile = self.profile(weights, geometry)
        if profile is None:
            raise NotImplementedError(f"{self.name} has neither a profile nor a bias of its own")
        return by_distance(query_positions, key_positions, profile)

    def profile(self, weights: Weights, geometry: Geometry) -> Callable[[Tensor], Tensor] | None:
        """The offsets as a function of the distance m - n alone, int64 (count,) to float32 (count, heads); None where they
        depend on more. Such a bias costs a list of numbers instead of a matrix."""
        return None


class Fold(Bias):
    """A bias that is a sum of products f(m) * g(n): extra columns of q and k whose dot product it is, up to a row constant.

    looks_back: True where the columns give the bias of keys at or before their query only.
    """

    looks_back: ClassVar[bool] = False

    def folds(self, geometry: Geometry, dtype: torch.dtype) -> bool:
        """True where columns are worth their cost, and exact enough in `dtype`."""
        return True

    def columns(
        self, query_positions: Tensor, key_positions: Tensor, weights: Weights, geometry: Geometry
    ) -> tuple[Tensor, Tensor]:
        """Columns for q (batch or 1, heads, query, c) and k (batch or 1, kv_heads or 1, key, c), float32, so that
        q_columns . k_columns is the bias in nats plus anything constant in a row. Where `folds` is True the columns of k must
        be exact in its dtype; those of q need not be."""
        raise NotImplementedError


@dataclass(frozen=True)
class Band:
    """The pairs with start <= m - n < stop (None: no end), which attend with q at query(m) and k at key(n), in tokens.

    With `unit` u > 1 whole blocks of u tokens are counted instead: start <= m // u - n // u < stop. `key` maps a position alone,
    so that keys can be cached rotated; `amplitude` multiplies the logits.
    """

    start: int
    stop: int | None
    query: Callable[[Tensor], Tensor]
    key: Callable[[Tensor], Tensor]
    amplitude: float = 1.0
    unit: int = 1


class Bands(Method):
    """Ranges of distance, each with its own re-indexing of the rotary encoding that stands in the host.

    forgets: True where a key that a query does not see is seen by none after it, so that a cache need not keep it.
    """

    slot: ClassVar[str] = "score"
    family: ClassVar[str] = "training-free"
    clears: ClassVar[bool] = False
    needs: ClassVar[str] = "nothing"
    forgets: ClassVar[bool] = False

    def visible(self, query_positions: Tensor, key_positions: Tensor, geometry: Geometry) -> Tensor | None:
        """Which of the pairs a query sees at all, bool (batch, query, key) for positions (batch, query) and (batch, key);
        None where the method hides nothing."""
        return None

    def target_length(self, geometry: Geometry) -> int | None:
        """The length in tokens that stays within trained distances, or None where there is no such limit or it stays."""
        return None

    def bands(self, geometry: Geometry) -> tuple[Band, ...]:
        """The ranges, disjoint; together they cover every pair that a causal query may see (start of the first is 0).

        Where the attention is two-sided the engine mirrors them: a key after its query uses the band of n - m, with the two
        maps exchanged, so that the relative position is the negative of the mirrored pair's.
        """
        raise NotImplementedError

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        if geometry.rotation is None:
            raise UnsupportedHost(
                f"{self.name} re-indexes a rotary encoding and this model has none; "
                f"put one there first: apply(model, ['rope', {self.name!r}])"
            )
        needs_fixed(self.name, geometry.rotation)
