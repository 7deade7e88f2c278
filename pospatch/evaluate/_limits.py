"""Lengths that cannot be read are refused before the first forward: a table that ends, memory that does not suffice."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from pospatch.errors import BadOption, UnsupportedHost

__all__ = ["available_memory", "forward_memory", "reach", "refuse_beyond_memory", "refuse_too_long"]


def refuse_too_long(model: Any, length: int) -> None:
    """Raise where one forward over `length` tokens cannot work on this model and machine.

    Raises:
        BadOption: the model's table of positions is shorter, or the memory is certainly too small.
    """
    end = reach(model)
    if end is not None and length > end:
        raise BadOption(
            f"{type(model).__name__} reads at most {end} tokens (its table of positions ends there), got length {length}: "
            "apply a method that reaches further, or give smaller lengths"
        )
    refuse_beyond_memory(model, length)


def refuse_beyond_memory(model: Any, length: int) -> None:
    """Raise where the memory is certainly too small for one forward over `length` tokens.

    Raises:
        BadOption: saying how much is needed and how much is free.
    """
    device = model.get_input_embeddings().weight.device
    needed, free = forward_memory(model, length), available_memory(device)
    if free is not None and needed > free:
        raise BadOption(
            f"a forward over {length} tokens needs about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free on "
            f"{device.type}: give smaller lengths, a smaller dtype, or attn_implementation='sdpa' where it is 'eager'"
        )


def reach(model: Any) -> int | None:
    """The last length that the model can read at all, or None where no table of positions ends."""
    from pospatch.api import patch_of, unwrap
    from pospatch.engine._sites import find

    target = unwrap(model)
    patch = patch_of(target)
    if patch is not None and any(method.slot in ("embedding", "positions") or method.clears for method in patch.stack):
        return None
    try:
        tables = find(target).tables
    except UnsupportedHost:
        return None
    rows = [table.rows for table in tables if _ends(table.module)]
    return min(rows, default=None)


def _ends(table: nn.Module) -> bool:
    # Sinusoidal tables are embeddings too in some families, and grow when they are read beyond their end.
    return isinstance(table, nn.Embedding) and not hasattr(table, "make_weights")


def forward_memory(model: Any, length: int) -> int:
    """A lower estimate in bytes of what one forward over one sequence holds at its peak, weights not counted."""
    config = model.config.get_text_config(decoder=True)
    item = next(model.parameters()).element_size()
    width = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * width)
    held = length * (6 * width + 2 * inner) * item
    if config._attn_implementation == "eager":
        held += 2 * int(config.num_attention_heads) * length * length * item
    return held


def available_memory(device: torch.device) -> int | None:
    """Free bytes on a device, or None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        return found["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return None
