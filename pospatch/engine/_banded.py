"""Calls whose logits are bands of distance: the flash kernel where the call has its plain form, a step's own form, else blocks
of logits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pospatch.attention._mask import additive, seen_keys, spans, triangle
from pospatch.attention.bands import banded_logits
from pospatch.attention.blockwise import blockwise, repeat_kv
from pospatch.attention.flash import banded_flash, both_ways, pieces, reach
from pospatch.engine._reindex import form_of, rotated
from pospatch.methods._base import Band, Bands

if TYPE_CHECKING:
    from pospatch.engine._state import Call, State

__all__ = ["band_logits", "flash", "step", "visible"]

LINED_UP = "_pospatch_lined_up"
LEAST_PADDED = 128  # tokens of a padded batch from which a call for each row takes less time than blocks of logits


def visible(method: Bands, call: Call, key_positions: Tensor) -> Any:
    """Which keys a block of queries sees, as `blockwise` asks it."""
    return lambda rows: method.visible(call.positions[:, rows], key_positions, call.state.geometry)


def band_logits(query: Tensor, key: Tensor, call: Call, key_positions: Tensor, scaling: float) -> Any:
    """The function of `blockwise` that gives the logits of a block of queries; key is repeated to the query heads."""
    state = call.state
    bands = _bands(state).bands(state.geometry)
    key = _paired(call, key)
    everything = slice(0, key.shape[2])
    return banded_logits(
        bands,
        state.paired(query),
        key,
        [form_of(call, key, bands, band, key_positions, everything) for band in bands],
        call.positions,
        key_positions,
        scaling,
        lambda x, positions: rotated(state, x, positions),
        two_sided=not state.geometry.causal,
    )


def step(
    query: Tensor, key: Tensor, value: Tensor, mask: Any, call: Call, scaling: float, kwargs: dict[str, Any]
) -> Tensor | None:
    """The output (batch, 1, heads, d) of one query over cached keys whose ranges are slices; None where they are not.

    Heads that share keys read them once, and only the keys of a range are turned into its form.
    """
    state = call.state
    method = _bands(state)
    if (
        query.shape[2] != 1
        or call.cache is None
        or torch.compiler.is_compiling()
        or not (mask is None or torch.is_tensor(mask))
        or type(method).visible is not Bands.visible
        or kwargs.get("dropout")
        or any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias"))
    ):
        return None
    positions = call.key_positions(key.shape[2])
    bands = method.bands(state.geometry)
    cuts = _cuts(bands, call, positions, mask)
    if cuts is None:
        return None
    batch, kv_heads, keys, _ = key.shape
    query, key = state.paired(query), _paired(call, key)
    logits = []
    for band, part in zip(reversed(bands), reversed(cuts), strict=True):
        if part.start < part.stop:
            turned = rotated(state, query, band.query(call.positions)) * (scaling * band.amplitude)
            held = form_of(call, key, bands, band, positions, part)
            logits.append(torch.matmul(turned.view(batch, kv_heads, -1, turned.shape[-1]), held.transpose(2, 3)))
    scores = torch.cat(logits, dim=-1) if len(logits) > 1 else logits[0]
    weights = scores.float()
    bar = additive(mask, False, slice(0, 1), query, keys)
    if bar is not None:
        bar = bar.clamp(min=torch.finfo(torch.float32).min / 2)
        shared = bar.shape[1] == 1
        weights = weights + (bar if shared else bar.view(bar.shape[0], kv_heads, -1, bar.shape[-1]))[..., :keys]
    output = torch.matmul(weights.softmax(dim=-1).to(value.dtype), value)
    return output.view(batch, 1, query.shape[1], -1)


def _cuts(bands: tuple[Band, ...], call: Call, positions: Tensor, mask: Any) -> list[slice] | None:
    """The slice of keys that each range holds, the keys in order; None where a range is not one slice for all rows."""
    keys = positions.shape[1]
    last = call.positions[:, -1:]
    if not _lined_up(call, positions, mask):
        return None
    whole = any(band.unit > 1 for band in bands)
    if whole and not bool((last == last[:1]).all()):
        return None
    where, found = int(last[0, 0]) if whole else keys - 1, []
    for band in bands:  # distance d is key keys - 1 - d; a unit's block of distance b ends where its last token stands
        near = where - ((where // band.unit - band.start + 1) * band.unit - 1) if band.start else 0
        far = keys if band.stop is None else where - ((where // band.unit - band.stop + 1) * band.unit - 1)
        found.append(slice(max(0, keys - far), max(0, keys - near)))
    return found


def _lined_up(call: Call, positions: Tensor, mask: Any) -> bool:
    """True where each key stands as far before the query as it lies before the last key; keys that are masked may stand
    anywhere. Layers of one forward share the answer."""
    shared = {} if call.record is None else vars(call.record)
    if shared.get(LINED_UP, ()) and shared[LINED_UP][0] is mask:
        return True
    keys = positions.shape[1]
    right = positions == call.positions[:, -1:] - torch.arange(keys - 1, -1, -1, device=positions.device)
    if mask is not None and mask.shape[-1] == keys:
        hidden = ~mask if mask.dtype == torch.bool else mask <= torch.finfo(mask.dtype).min / 2
        right = right[:, None, None] | hidden
    if not bool(right.all()):
        return False
    shared[LINED_UP] = (mask,)
    return True


def flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    call: Call,
    causal: bool,
    scaling: float,
    kwargs: dict[str, Any],
) -> Tensor | None:
    """The output (batch, query, heads, d) from the CPU's flash kernel, or None where the call needs the logits themselves.

    The kernel takes consecutive tokens: the last of them are the queries, under a plain causal triangle, or all of them see all.
    Rows with pads are calls of their own over the tokens between. No window, softcap, sink or dropout.
    """
    state = call.state
    method = _bands(state)
    plain = (
        not torch.compiler.is_compiling()
        and query.device.type == "cpu"
        and query.shape[-1] == value.shape[-1]
        and type(method).visible is Bands.visible
        and not kwargs.get("dropout")
        and all(kwargs.get(name) is None for name in ("softcap", "s_aux", "position_bias"))
    )
    if not plain:
        return None
    positions = call.key_positions(key.shape[2])
    if triangle(mask, causal, call.positions, positions) is state.geometry.causal:
        return _consecutive(query, key, value, call, scaling)
    if query.shape[2] < LEAST_PADDED:
        return None
    rows = spans(mask, call.positions, positions, state.geometry.causal)
    return None if rows is None else _row_by_row(query, key, value, mask, call, scaling, rows)


def _row_by_row(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, call: Call, scaling: float, rows: list[slice]
) -> Tensor | None:
    """As `flash`, of the tokens `rows` of each row of the batch; neighbours with the same tokens are one call."""
    found, batch = [], query.shape[0]
    positions, mask = call.positions.expand(batch, -1), mask.expand(batch, -1, -1, -1)
    rows = rows * (batch // len(rows))  # one for all
    alike = [(held, int(where[held.start])) for held, where in zip(rows, positions, strict=True)]
    if any(begin for _, begin in alike) and any(
        band.unit > 1 for band in _bands(call.state).bands(call.state.geometry)
    ):
        return None  # chunks are counted from position 0, also where tokens are not
    starts = [row for row in range(batch) if row == 0 or alike[row] != alike[row - 1]]
    for first, stop in zip(starts, [*starts[1:], batch], strict=True):
        held, where = rows[first], positions[first:stop]
        ours, keys, values = query[first:stop], key[first:stop, :, held], value[first:stop, :, held]
        part = replace(call, positions=where[:, held], cache=None, record=None, turned=[])
        output = _consecutive(ours[:, :, held], keys, values, part, scaling)
        if output is None:
            return None
        before, after = (
            _pads(ours[:, :, at], keys, values, mask[first:stop, :, at, held], part, where[:, at], scaling)
            for at in (slice(0, held.start), slice(held.stop, None))
        )
        found.append(torch.cat((before, output, after), dim=1))
    return torch.cat(found)


def _pads(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, call: Call, positions: Tensor, scaling: float
) -> Tensor:
    """What pads at `positions` read of the tokens of a call, in blocks of logits: no token sees it, but a caller may.

    Pads that see no token give zeros.
    """
    heads = query.shape[1]
    if not seen_keys(mask, query, key.shape[2]).any():  # type: ignore[union-attr]  # there is a mask
        return query.new_zeros((query.shape[0], query.shape[2], heads, value.shape[-1]))
    key, value = repeat_kv(key, heads), repeat_kv(value, heads)
    logits = band_logits(query, key, replace(call, positions=positions), call.positions, scaling)
    return blockwise(query, value, mask, False, logits, kept=0)[0]  # one such call a row: graphs would add up


def _consecutive(query: Tensor, key: Tensor, value: Tensor, call: Call, scaling: float) -> Tensor | None:
    """As `flash`, of consecutive tokens without a pad."""
    state, positions = call.state, call.key_positions(key.shape[2])
    bands = _bands(state).bands(state.geometry)
    if not state.geometry.causal:
        return _two_sided(query, key, value, call, bands, scaling)
    if any(band.unit > 1 for band in bands) and int(positions[0, 0]):
        return None
    plan = pieces(bands, query.shape[2], key.shape[2])
    if plan is None:
        return None
    used = {piece.band for piece in plan}
    query, key = state.paired(query), _paired(call, key)
    turned = [
        (
            rotated(state, query, band.query(call.positions)),
            form_of(call, key, bands, band, positions, reach(plan, index)),
        )
        if index in used
        else (query, key)
        for index, band in enumerate(bands)
    ]
    output = banded_flash(turned, value, [scaling * band.amplitude for band in bands], plan)
    return output.transpose(1, 2).contiguous()


def _two_sided(
    query: Tensor, key: Tensor, value: Tensor, call: Call, bands: tuple[Band, ...], scaling: float
) -> Tensor | None:
    """As `flash`, of tokens that all see each other."""
    state, positions, found = call.state, call.positions, both_ways(bands, key.shape[2])
    if found is None or query.shape[2] != key.shape[2]:
        return None
    plan, front = found
    query, key = state.paired(query), _paired(call, key)
    maps = [(band.query, band.key) for band in bands]
    turned = []
    for index, (first, second) in enumerate([*maps, *((second, first) for first, second in maps)]):
        held = reach(plan, index)
        ours, theirs = (rotated(state, query, first(positions)), rotated(state, key, second(positions)))
        turned.append((_after(ours, front), _after(theirs, front)[:, :, held]))
    scalings = [scaling * band.amplitude for band in bands]
    output = banded_flash(turned, _after(value, front), [*scalings, *scalings], plan)[:, :, front:]
    return output.transpose(1, 2).contiguous()


def _after(x: Tensor, tokens: int) -> Tensor:
    """x (batch, heads, token, d) with zeros for so many tokens before it."""
    return torch.nn.functional.pad(x, (0, 0, tokens, 0)) if tokens else x


def _paired(call: Call, key: Tensor) -> Tensor:
    return key if call.keys_done else call.state.paired(key)


def _bands(state: State) -> Bands:
    assert isinstance(state.score, Bands)
    return state.score
