"""Lengths that cannot be read are refused before the first forward: a table that ends, memory that does not suffice."""

from __future__ import annotations

import bisect
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pospatch.errors import BadOption, UnsupportedHost

if TYPE_CHECKING:
    from pospatch.engine._sites import Sites
    from pospatch.engine._tables import Table
    from pospatch.engine.embedding import AddedTable
    from pospatch.engine.positions import Reindex

__all__ = ["available_memory", "forward_memory", "reach", "refuse_beyond_memory", "refuse_too_long", "total_memory"]


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
    """The last length that the model can read at all as it stands, patched or not; None where nothing ends."""
    from pospatch.api import patch_of, unwrap
    from pospatch.engine._sites import find

    target = unwrap(model)
    try:
        sites = find(target)
    except UnsupportedHost:
        return None
    patch = patch_of(target)
    readers = patch.readers if patch is not None else {}
    ends = [_end(table.rows, readers.get(table.path), _counted(table, sites)) for table in sites.tables if _ends(table)]
    offsets = {table.path: table.offset for table in patch.found.tables} if patch is not None and patch.found else {}
    for path, added in _added(target):
        rows = added.weight.shape[0] - offsets.get(path.rpartition(".")[0], 0)
        ends.append(_end(rows, readers.get(path), None))
    return min((end for end in ends if end is not None), default=None)


def _ends(table: Table) -> bool:
    # A cleared table is none any more. Sinusoidal tables are embeddings too in some families, and grow when they are read
    # beyond their end.
    return isinstance(table.module, nn.Embedding) and not hasattr(table.module, "make_weights")


def _added(model: nn.Module) -> list[tuple[str, AddedTable]]:
    """Tables of a patch that stand where the host has none, or one that cannot be trained."""
    from pospatch.engine.embedding import AddedTable

    return [(path, module) for path, module in model.named_modules() if isinstance(module, AddedTable)]


def _counted(table: Table, sites: Sites) -> int | None:
    """Tokens that the shortest of the index buffers beside a table can count, or None where the host has none."""
    # Types are looked up at the table's own row numbers. A host whose rows begin with an offset counts its positions itself.
    names = (name for name in sites.host.buffers if name != "position_ids" or not table.offset)
    buffers = (table.parent._buffers.get(name) for name in names)
    return min((buffer.shape[-1] - table.offset for buffer in buffers if buffer is not None), default=None)


def _end(rows: int, reader: Reindex | None, counted: int | None) -> int | None:
    """The last length for which a table of `rows` rows has one for every token, or None where that is any length."""
    last = rows if reader is None else _last_read(rows, reader)
    return min((end for end in (last, counted) if end is not None), default=None)


def _last_read(rows: int, reader: Reindex) -> int | None:
    """As `_end`, of a table that is read at other positions than the tokens'.

    What a method promises is no end in itself: some go on beyond it, some only reach it in training.
    """
    promised = max(reader.method.target_length(reader.geometry) or rows, rows)
    if _row_of_last(reader, promised + 1) < rows:
        return None
    lengths = range(rows, promised + 1)
    return lengths[bisect.bisect_left(lengths, True, key=lambda n: _row_of_last(reader, n + 1) >= rows)]


def _row_of_last(reader: Reindex, length: int) -> int:
    """The row that the last token of a document of `length` tokens reads."""
    from pospatch.methods._base import Forward

    # one token as a cached step gives it, where the length is all that counts: two-sided, so that no step is refused
    tokens = torch.zeros(1, length, dtype=torch.long) if reader.method.by_token else None
    geometry = reader.geometry.with_(causal=False)
    return int(reader.method.positions(torch.tensor([[length - 1]]), geometry, Forward(tokens=tokens)).max())


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
        return _pages("SC_AVPHYS_PAGES")


def total_memory(device: torch.device) -> int | None:
    """Bytes of a device, used or not, or None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return _pages("SC_PHYS_PAGES") if device.type == "cpu" else None


def _pages(name: str) -> int | None:
    """Bytes of so many pages, where the system counts them."""
    try:
        return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
