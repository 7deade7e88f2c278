"""One row: what cannot be read from a model itself about where its positions live."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AUTO", "CROSS", "Host", "Refusal"]

AUTO = "auto"
CROSS = (
    "crossattention",
    "encoder_attn",
    "EncDecAttention",
    "cross_attn",
    "cross_attention",
    "encoder_attention",
    "multihead_attn",
)


@dataclass(frozen=True, kw_only=True)
class Host:
    """Families that share one wiring. Attention and rotary modules are found by what they are; a row names only the rest.

    Args:
        wiring: short name of the wiring, as tables show it.
        families: transformers' `model_type` names.
        table: ends of the paths of absolute tables: modules with a weight, or parameters or buffers of their owner.
        offset: rows of a table before position 0; "padding_idx" where they are padding_idx + 1; AUTO reads the module's own
            `offset` or `padding_idx`.
        counts_offset: True where the config's length includes those rows.
        buffers: index buffers as long as the table, regrown with it.
        bias: ends of the paths of native relative-bias tables.
        silenced: arguments of the attention module that bring native positions with the call, zeroed where they are cleared.
        attention: ends of the paths of attention modules with mathematics of their own; empty where they ask the registry.
        carrier: the argument of such a module to which an additive bias can be added.
        sincos: ends of the paths of tables of sines and cosines by position, which stand in for a rotary module.
        added: True where a table is added to as many tokens as it has rows and to nothing else; where it is cleared, one row
            of zeros stands for it, and inputs of any length run.
        hushed: ends of the paths of modules that give nothing but positions (a convolution over the tokens, a lookup of
            distances); what they give is zeroed.
        opened: buffers of a module that hold the causal triangle, set open during the proof.
        order: what knows the order of tokens beside the four sites (recurrent layers, convolutions, windows) and stays; the
            proof then looks at each attention alone.
        steps: the argument of the model's forward that holds the position of each step, where a step is several tokens.
        cross: names of cross-attention modules, which share no axis and are left alone.
        note: what a user of this family should know.
    """

    wiring: str
    families: tuple[str, ...]
    table: tuple[str, ...] = ()
    offset: int | str = AUTO
    counts_offset: bool = False
    buffers: tuple[str, ...] = ()
    bias: tuple[str, ...] = ()
    silenced: tuple[str, ...] = ()
    attention: tuple[str, ...] = ()
    carrier: str = ""
    sincos: tuple[str, ...] = ()
    added: bool = False
    hushed: tuple[str, ...] = ()
    opened: tuple[str, ...] = ()
    order: str = ""
    steps: str = ""
    cross: tuple[str, ...] = CROSS
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Families that cannot be reached, and why."""

    reason: str
    families: tuple[str, ...]
