"""What a config.json says about rotary positions, in whichever spelling: v4, v5, or one family's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pospatch.checkpoint._numbers import DICTIONARIES, finite
from pospatch.engine._native import SPECTRAL

__all__ = ["PARAMETERS", "Claims", "Stated", "claims", "text_of"]

THETAS = (
    "rope_theta",
    "rotary_emb_base",
    "rope_base",
    "rotary_base",
    "rope_freq_base",
    "global_rope_theta",
    "local_rope_theta",
    "rope_local_base_freq",
)
SHARES = ("partial_rotary_factor", "rotary_pct", "rotary_percent", "rope_pct")
PARAMETERS = SPECTRAL[1:]  # of a rope_type
PLAIN = ("default", "none", "None", "mrope")  # nothing is scaled
RENAMED = {"su": "longrope"}


@dataclass(frozen=True)
class Stated:
    """A value and where it stands."""

    where: str
    value: Any


@dataclass(frozen=True)
class Claims:
    """All that is stated, each with its place.

    Args:
        groups: each dictionary of rotary parameters.
        thetas: bases of the frequencies.
        types: kinds of scaling, as transformers 5 names them.
        shares: rotated shares of a head.
        originals: trained lengths that stand beside the dictionaries.
    """

    groups: tuple[Stated, ...]
    thetas: tuple[Stated, ...]
    types: tuple[Stated, ...]
    shares: tuple[Stated, ...]
    originals: tuple[Stated, ...]

    @property
    def scaled(self) -> tuple[Stated, ...]:
        """The kinds that change frequencies."""
        return tuple(item for item in self.types if item.value not in PLAIN)


def text_of(raw: dict[str, Any]) -> dict[str, Any]:
    """The part of a config.json that reads text."""
    inner = [raw[name] for name in ("text_config", "decoder") if isinstance(raw.get(name), dict)]
    return inner[0] if inner else raw


def claims(raw: dict[str, Any]) -> Claims:
    """Everything about rotary positions that stands in a config.json."""
    text = text_of(raw)
    groups = [found for name in DICTIONARIES for found in _dictionaries(name, text.get(name))]
    thetas = [Stated(name, text[name]) for name in THETAS if finite(text.get(name))]
    thetas += [
        Stated(f"{g.where}.rope_theta", g.value["rope_theta"]) for g in groups if finite(g.value.get("rope_theta"))
    ]
    types = [Stated(group.where, _type(group.value)) for group in groups if _type(group.value) is not None]
    shares = [Stated(name, text[name]) for name in SHARES if finite(text.get(name))]
    shares += [
        Stated(f"{g.where}.{name}", g.value[name]) for g in groups for name in SHARES if finite(g.value.get(name))
    ]
    original = "original_max_position_embeddings"
    beside = [Stated(original, text[original])] if finite(text.get(original)) else []
    return Claims(tuple(groups), tuple(thetas), tuple(types), tuple(shares), tuple(beside))


def _dictionaries(where: str, found: Any) -> list[Stated]:
    """The dictionary itself, or one for each layer type."""
    if not isinstance(found, dict) or not found:
        return []
    inner = [Stated(f"{where}.{label}", item) for label, item in found.items() if isinstance(item, dict) and item]
    own = {name: value for name, value in found.items() if not isinstance(value, dict)}
    return ([Stated(where, own)] if own else []) + inner


def _type(group: dict[str, Any]) -> str | None:
    kind = group.get("rope_type", group.get("type"))
    return RENAMED.get(kind, kind) if isinstance(kind, str) else None
