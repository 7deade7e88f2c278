"""What a call's mask allows, whatever form the backend gave it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["additive", "columns", "is_causal_call", "looks_back", "row_blocks", "seen_keys", "spans", "triangle"]

ROWS = 1024  # queries whose mask is looked at together


def is_causal_call(mask: Any, query: int, module: Any, is_causal: bool | None) -> bool:
    """sdpa's rule: no mask, several queries and a causal module mean the causal triangle, aligned upper left."""
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    return mask is None and query > 1 and bool(causal)


def triangle(mask: Any, causal: bool, query_positions: Tensor, key_positions: Tensor) -> bool | None:
    """Where queries are the last of the keys, in order and one token apart: True where each sees what stands at or before it,
    False where each sees all; None where positions or mask are anything else."""
    queries, keys = query_positions.shape[1], key_positions.shape[1]
    if torch.compiler.is_compiling() or keys < queries or not (torch.is_tensor(mask) or mask is None):
        return None
    where = key_positions[:1, :1] + torch.arange(keys, device=key_positions.device)
    if not (bool((key_positions == where).all()) and bool((query_positions == where[:, keys - queries :]).all())):
        return None
    if mask is None:
        return None if causal and keys > queries else causal  # the triangle of no mask is aligned upper left
    if mask.shape[-2:] != (queries, keys) or mask.requires_grad:
        return None
    seen = mask if mask.dtype == torch.bool else mask == 0
    if mask.dtype != torch.bool and not bool((seen | (mask <= torch.finfo(mask.dtype).min / 2)).all()):
        return None  # a bias of the caller's own
    if bool(seen.all()):
        return False
    return True if bool((seen == (where[0] <= where[0, keys - queries :, None])).all()) else None


def spans(mask: Any, query_positions: Tensor, key_positions: Tensor, causal: bool) -> list[slice] | None:
    """The tokens of each row of a padded batch (of one for all rows), all else being pads: no token sees a pad, and among the
    tokens `triangle` is `causal`. None where the queries are not all the keys, or mask or positions are anything else."""
    tokens = key_positions.shape[1]
    if (
        not torch.is_tensor(mask)
        or mask.dim() != 4
        or not mask.shape[2] == mask.shape[3] == query_positions.shape[1] == tokens
    ):
        return None
    seen, found = seen_keys(mask, mask, tokens), []
    assert seen is not None  # there is a mask
    for row in range(max(len(seen), len(query_positions), len(key_positions))):
        keys = seen[row % len(seen)].nonzero().flatten().tolist()
        if not keys or keys[-1] - keys[0] >= len(keys):
            return None
        held = slice(keys[0], keys[-1] + 1)
        ours, theirs = (each[row % len(each), held][None] for each in (query_positions, key_positions))
        shape = triangle(mask[row % len(mask), :, held, held], False, ours, theirs)
        if shape is None or (shape is not causal and len(keys) > 1):  # a single token is both
            return None
        found.append(held)
    return found


def looks_back(mask: Any, causal: bool, query_positions: Tensor, key_positions: Tensor) -> bool:
    """True where no query of the call sees a key that stands after it; False too where that is not known.

    A caller's mask may let a causal model see ahead (a prefix, an image), and positions may start again within a row.
    """
    if mask is None:
        if not causal or torch.compiler.is_compiling():  # a graph cannot look at positions; they count up there
            return causal
        keys = key_positions[:, : query_positions.shape[1]]
        return bool((keys[:, 1:] >= keys[:, :-1]).all())
    if torch.compiler.is_compiling() or not torch.is_tensor(mask):
        return False
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    ahead = key_positions[:, None, None, :] > query_positions[:, None, :, None]
    return not bool((seen[..., : key_positions.shape[1]] & ahead).any())


def additive(mask: Any, causal: bool, rows: slice, query: Tensor, keys: int) -> Tensor | None:
    """The mask of the queries `rows` against all keys as float32 to add, (batch or 1, heads or 1, rows, keys), or None."""
    device = query.device
    if mask is None:
        if not causal:
            return None
        index = torch.arange(rows.start, rows.stop, device=device)
        allowed = index[:, None] >= torch.arange(keys, device=device)[None]
        return _fill(allowed[None, None])
    if not torch.is_tensor(mask):
        return _fill(_dense(mask, rows, keys, device))
    block = mask[..., rows if mask.shape[-2] > 1 else slice(None), :keys]
    return _fill(block) if block.dtype == torch.bool else block.float()


def columns(mask: Any, query: Tensor, held: Tensor, keys: int) -> Tensor | None:
    """A mask over `keys` tokens at those of them whose keys are there, by their indices."""
    if mask is None:
        return None
    if not torch.is_tensor(mask):
        mask = _dense(mask, slice(0, query.shape[2]), keys, query.device)
    return mask[..., held]


def _fill(allowed: Tensor) -> Tensor:
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, float("-inf"))


def seen_keys(mask: Any, query: Tensor, keys: int) -> Tensor | None:
    """Which keys any query of this call sees, bool (batch or 1, key), or None where there is no mask."""
    if mask is None:
        return None
    if torch.is_tensor(mask):
        allowed = mask[..., :keys]
        return (allowed if allowed.dtype == torch.bool else allowed > -1e4).any(dim=-2).any(dim=1)
    seen = None
    for rows in row_blocks(query.shape[2], ROWS):
        part = _dense(mask, rows, keys, query.device).any(dim=-2).any(dim=1)
        seen = part if seen is None else seen | part
    return seen


def row_blocks(length: int, size: int) -> list[slice]:
    """The queries in blocks of at most `size`, at least 1."""
    size = max(1, min(length, size))
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _dense(mask: Any, rows: slice, keys: int, device: torch.device) -> Tensor:
    """Some rows of a flex BlockMask written out as booleans."""
    from torch.nn.attention.flex_attention import create_mask

    inner = mask.mask_mod

    def shifted(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return inner(batch, head, query + rows.start, key)

    return create_mask(shifted, mask.shape[0], mask.shape[1], rows.stop - rows.start, keys, device=str(device))
