"""One row: what cannot be read from a model itself about where its positions live."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Host"]


@dataclass(frozen=True, kw_only=True)
class Host:
    """Families that share one wiring. Attention and rotary modules are found by what they are, so a row names only the rest.

    Args:
        wiring: short name of the wiring, as tables show it.
        families: transformers' `model_type` names.
        table: ends of the module paths of absolute tables.
        offset: rows of a table before position 0; "padding_idx" where they are padding_idx + 1.
        counts_offset: True where the config's length includes those rows.
        buffers: index buffers as long as the table, regrown with it.
        layout: order of the rotated pairs, "half" (i, i + half) or "interleaved" (2i, 2i + 1).
        bias: ends of the paths of native relative-bias tables.
        cross: names of cross-attention modules, which share no axis and are left alone.
        note: what a user of this family should know.
    """

    wiring: str
    families: tuple[str, ...]
    table: tuple[str, ...] = ()
    offset: int | str = 0
    counts_offset: bool = False
    buffers: tuple[str, ...] = ()
    layout: str = "half"
    bias: tuple[str, ...] = ()
    cross: tuple[str, ...] = ("crossattention", "encoder_attn", "EncDecAttention", "cross_attn", "cross_attention")
    note: str = ""
