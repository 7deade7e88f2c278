"""The kinds at the score whose formula knows what the tokens hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pospatch.geometry import Geometry
from pospatch.methods._method import Method, Weights

__all__ = ["Block", "Contextual", "SummedBias", "SummedRotation"]


@dataclass
class Block:
    """A block of queries against keys, as a contextual method sees it.

    Args:
        query: (batch, heads, query, head_dim).
        key: (batch, heads, key, head_dim), repeated to the query heads.
        scores: scaled q.k in nats, (batch, heads, query, key), float32.
        query_positions, key_positions: (batch, query) and (batch, key) in tokens.
        allowed: bool (batch or 1, 1, query or 1, key); False where a query must not see a key.
        query_state, key_state: what `state` returned for these tokens, (batch, heads, query or key, c), or None.
    """

    query: Tensor
    key: Tensor
    scores: Tensor
    query_positions: Tensor
    key_positions: Tensor
    allowed: Tensor
    query_state: Tensor | None = None
    key_state: Tensor | None = None


class Contextual(Method):
    """Logits that depend on the content of q, k or the hidden states.

    shared_state: True where the heads that share a key share its state too.
    cap_first: True where a host's softcap acts on q.k alone, False where it acts on the method's logits.
    """

    slot: ClassVar[str] = "score"
    family: ClassVar[str] = "adaptive"
    shared_state: ClassVar[bool] = False
    cap_first: ClassVar[bool] = False

    def logits(self, block: Block, weights: Weights, geometry: Geometry) -> Tensor:
        """New logits (batch, heads, query, key) in nats, float32; what is not allowed is masked afterwards.

        A logit may depend on the allowed keys of its own query alone, or decoding could not equal one pass.
        """
        raise NotImplementedError

    def planes(self, geometry: Geometry) -> int:
        """Matrices of (query, key) that `logits` holds at once for each head; blocks of queries are so much smaller."""
        return 1

    def state(self, hidden: Tensor, weights: Weights, geometry: Geometry) -> Tensor | None:
        """A state for each token from the hidden states (batch, length, width): (batch, heads, length, c) float32, or None.

        It is kept beside the cached keys, to the precision of float32 whatever the keys' type, so a step needs only its own
        tokens' hidden states. Where `shared_state`, it has kv_heads instead of heads.
        """
        return None


class SummedBias(Contextual):
    """Adds to a logit what the tokens after the key up to the query hold together: each token's own number is its `state`.

    A sum over (n, m] is a difference of two sums from the start, of which softmax sees only the key's: any kernel adds it.
    """

    def state(self, hidden: Tensor, weights: Weights, geometry: Geometry) -> Tensor:
        """The offset in nats that each token adds to all logits that reach over it, (batch, heads, length, 1) float32."""
        raise NotImplementedError


class SummedRotation(Contextual):
    """Rotates q and k by the sum of the tokens' own angles up to each; a logit then knows the angles in (n, m] alone."""

    shared_state: ClassVar[bool] = True

    def state(self, hidden: Tensor, weights: Weights, geometry: Geometry) -> Tensor:
        """What each token's angles are made from, (batch, kv_heads, length, c) float32."""
        raise NotImplementedError

    def angles(self, state: Tensor, weights: Weights, geometry: Geometry, documents: Tensor | None = None) -> Tensor:
        """The angle in radians that each token adds to the rotation of it and all later ones, (batch, kv_heads, length,
        head_dim / 2), from the states of consecutive tokens; those of pads are zero. `documents` (batch or 1, length) tells
        packed documents apart, which must not reach into each other; None where there is one."""
        return state
