"""The kinds of methods: each says at which site it acts and what it returns; the engine knows kinds, never methods.

A method is a frozen dataclass of its options; its mathematics are functions of (positions, geometry, weights). Learned tensors
are declared by `weights` and owned by the engine, which hands them back by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from pospatch.errors import BadOption, BadOptionType, UnsupportedHost, short, suggest
from pospatch.geometry import Geometry, Rotation
from pospatch.methods._distance import by_distance
from pospatch.methods._options import check

__all__ = [
    "Band",
    "Bands",
    "Bias",
    "Block",
    "Contextual",
    "Embedding",
    "Fold",
    "Forward",
    "Index",
    "Method",
    "Norm",
    "Nothing",
    "QueryScale",
    "Rotary",
    "Scaling",
    "SummedBias",
    "SummedRotation",
    "Weights",
]

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods.

    Class variables say what the engine and the tables need:
        slot: what the method holds; two methods compose when their slots differ.
        family: heading in the catalogue.
        clears: True where the method is a whole positional mechanism, so that the host's native one is removed.
        causal_only: True where the formula has no two-sided form.
        needs: "nothing" where the method works on a pretrained model as it is, "training" where it does not.
        exact_decode: False where frequencies depend on the total length, so that cached decoding cannot equal one pass.
        source: title, arXiv id and equation.
    """

    name: ClassVar[str] = ""
    slot: ClassVar[str] = ""
    family: ClassVar[str] = ""
    clears: ClassVar[bool] = True
    causal_only: ClassVar[bool] = False
    needs: ClassVar[str] = "training"
    exact_decode: ClassVar[bool] = True
    source: ClassVar[str] = ""

    layers: tuple[int, ...] | str | None = field(default=None, metadata={"kind": "layers", "optional": True})

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Method:
        """Build from keyword options; unknown and missing ones raise, naming what the method has."""
        valid = [item.name for item in fields(cls)]
        for name in options:
            if name not in valid:
                raise BadOptionType(
                    f"{cls.name}: unknown option {short(name)}.{suggest(name, valid)} Valid options: {', '.join(valid)}"
                )
        missing = [
            i.name
            for i in fields(cls)
            if i.default is MISSING and i.default_factory is MISSING and i.name not in options
        ]
        if missing:
            raise BadOptionType(
                f"{cls.name}: option {missing[0]!r} is required, e.g. apply(model, {cls.name!r}, {missing[0]}=...)"
            )
        return cls(**options)

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "layers":
                object.__setattr__(self, "layers", _check_layers(self.name, value))
            elif "kind" in item.metadata:
                object.__setattr__(self, item.name, check(self.name, item.name, value, item.metadata))
        self.check()

    @property
    def reads_grid(self) -> bool:
        """True where the method asks for the grid of patches, which each call of an image model says anew."""
        return False

    def check(self) -> None:
        """Rules between options; raise BadOption naming both."""

    def fits(self, geometry: Geometry) -> None:
        """Raise UnsupportedHost or BadOption where this method cannot act on such a layer."""
        if self.causal_only and not geometry.causal:
            raise UnsupportedHost(f"{self.name} is defined for causal attention only and this attention is two-sided")

    def options(self) -> dict[str, Any]:
        """The options that differ from their defaults, as plain JSON data."""
        plain = {
            item.name: getattr(self, item.name) for item in fields(self) if getattr(self, item.name) != item.default
        }
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    @classmethod
    def example(cls, options: dict[str, Any], geometry: Geometry) -> dict[str, Any]:
        """Options with which the method can be tried on a layer; `options` has 2 for each one that is required."""
        return options

    def weights(self, geometry: Geometry) -> dict[str, Tensor]:
        """Initial values of the learned tensors of one layer, by name; empty where there are none."""
        return {}

    def chosen(self, layers: int) -> list[int]:
        """Indices of the layers that the method acts on."""
        if self.layers is None or self.layers == "all":
            return list(range(layers))
        if isinstance(self.layers, str):
            rule, _, step = self.layers.partition(":")
            every = int(step)
            return [i for i in range(layers) if ((i + 1) % every == 0) == (rule == "every")]
        if bad := [i for i in self.layers if not -layers <= i < layers]:
            raise BadOption(
                f"{self.name}: layers={short(list(self.layers))} has index {short(bad[0])}, "
                f"the model has layers 0 to {layers - 1}"
            )
        return sorted({i % layers for i in self.layers})


def _check_layers(name: str, value: Any) -> Any:
    if value is None or value == "all":
        return value
    if isinstance(value, str):
        rule, _, step = value.partition(":")
        if rule in ("every", "except_every") and step.isascii() and step.isdigit() and int(step[:9]) > 0:
            return value
    elif (
        isinstance(value, list | tuple | range)
        and all(isinstance(i, int) and not isinstance(i, bool) for i in value)
        and value
    ):
        return tuple(value)
    raise BadOption(
        f"{name}: layers={short(value)} must be a list of layer indices, 'all', 'every:4' (layers 3, 7, ...) or 'except_every:4'"
    )


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


class Rotary(Method):
    """Rotates q and k by angles that grow with position: pair i of a head turns by inv_freq[i] radians per token."""

    slot: ClassVar[str] = "rotation"
    spectral: ClassVar[bool] = (
        True  # True where inv_freq and one amplitude say everything; False where `rotate` is overridden
    )

    def numbers_taken(self) -> int:
        """Numbers that a position from the caller has; 0 where none can be given."""
        return 1

    @property
    def dynamic(self) -> bool:
        """True where the frequencies depend on the length of the sequence seen so far."""
        return False

    def frequencies(self, geometry: Geometry, length: Tensor | None = None) -> tuple[Tensor, float]:
        """(inv_freq in radians per token, shape (half,), amplitude of cos and sin).

        Where the method is dynamic, `length` (batch, 1) int64 is the number of tokens seen; inv_freq is then (batch, half)
        and the amplitude may be a tensor (batch, 1, 1, 1).
        `length` None means: at most the trained length.
        """
        raise NotImplementedError

    def rope_parameters(self, geometry: Geometry) -> dict[str, Any] | None:
        """The same spectrum in transformers' spelling, or None where it has no exact native form."""
        return None

    def target_length(self, geometry: Geometry) -> int | None:
        """The length in tokens that the model is meant to read afterwards, or None where it stays."""
        return None

    def rotate(
        self,
        x: Tensor,
        positions: Tensor,
        side: str,
        weights: Weights,
        geometry: Geometry,
        length: Tensor | None = None,
    ) -> Tensor:
        """Rotate x (batch, heads, length, head_dim) at positions (batch, length); `side` is "query" or "key".

        The first 2 * half dimensions turn, in the half-split layout (dimension i with i + half); the others pass.
        Override it (and set spectral = False) where a method needs more than one angle a pair.
        """
        cos, sin = self.cos_sin(positions, geometry, x.dtype, length)
        return apply_rotation(x, cos, sin)

    def cos_sin(
        self, positions: Tensor, geometry: Geometry, dtype: torch.dtype, length: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """cos and sin of the angles times the amplitude, (batch, 1, length, 2 * half); computed in float32, cast last."""
        inv_freq, amplitude = self.frequencies(geometry, length)
        inv_freq = inv_freq.to(device=positions.device, dtype=torch.float32)
        if inv_freq.dim() == 2:
            inv_freq = inv_freq[:, None, :]
        angles = positions[..., None].float() * inv_freq
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return (angles.cos() * amplitude).to(dtype), (angles.sin() * amplitude).to(dtype)


def apply_rotation(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first cos.shape[-1] dimensions of x in the half-split layout; the others pass unchanged."""
    dim = cos.shape[-1]
    turned, rest = x[..., :dim], x[..., dim:]
    first, second = turned[..., : dim // 2], turned[..., dim // 2 :]
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


class Scaling(Rotary):
    """Changes the frequencies of the rotary encoding that stands in the host already."""

    slot: ClassVar[str] = "scaling"
    family: ClassVar[str] = "scaling"
    clears: ClassVar[bool] = False
    needs: ClassVar[str] = "nothing"

    def fits(self, geometry: Geometry) -> None:
        super().fits(geometry)
        if geometry.rotation is None:
            raise UnsupportedHost(
                f"{self.name} scales a rotary encoding and this model has none; put one there first: apply(model, ['rope', ...])"
            )
        _needs_fixed(self.name, geometry.rotation)


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
    """Ranges of distance, each with its own re-indexing of the rotary encoding that stands in the host."""

    slot: ClassVar[str] = "score"
    family: ClassVar[str] = "training-free"
    clears: ClassVar[bool] = False
    needs: ClassVar[str] = "nothing"

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
        _needs_fixed(self.name, geometry.rotation)


def _needs_fixed(name: str, rotation: Rotation) -> None:
    """Refuse to take frequencies for fixed ones that the host changes with the length of its input."""
    if not rotation.fixed:
        raise UnsupportedHost(
            f"{name} reads the frequencies of the rotary encoding, and this model changes them with the length of its input "
            f"(rope_type={rotation.rope_type!r}), so there is no spectrum to scale or re-index; put a fixed one there first: "
            f"apply(model, ['rope', {name!r}])"
        )


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


class Nothing(Method):
    """Clears every native position and puts nothing there."""

    slot: ClassVar[str] = "none"
    family: ClassVar[str] = "absolute"
