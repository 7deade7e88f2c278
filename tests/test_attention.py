"""Attention forms against the plainest one: the same softmax over the whole matrix of logits, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pospatch.attention import biased as biased_module
from pospatch.attention.biased import biased
from pospatch.attention.flash import banded_flash, pieces
from pospatch.methods._base import Band


def _same(x: Tensor) -> Tensor:
    return x


BANDS = {
    "near and far": [Band(0, 8, _same, _same), Band(8, None, _same, _same)],
    "three": [Band(0, 1, _same, _same), Band(1, 12, _same, _same), Band(12, None, _same, _same)],
    "chunks": [Band(0, 1, _same, _same, unit=8), Band(1, 2, _same, _same, unit=8), Band(2, None, _same, _same, unit=8)],
    "nothing far": [Band(0, 100, _same, _same), Band(100, None, _same, _same)],
}


def _whole(turned: Any, value: Tensor, scalings: Sequence[float], bands: Sequence[Band]) -> Tensor:
    length = value.shape[2]
    index = torch.arange(length)
    logits = torch.full((*value.shape[:2], length, length), float("-inf"), dtype=torch.float64)
    for (query, key), band, scaling in zip(turned, bands, scalings, strict=True):
        distance = index[:, None] // band.unit - index[None] // band.unit
        holds = (distance >= band.start) & (index[:, None] >= index[None])
        if band.stop is not None:
            holds = holds & (distance < band.stop)
        logits = torch.where(holds, query.double() @ key.double().transpose(-1, -2) * scaling, logits)
    return logits.softmax(dim=-1) @ value.double()


@pytest.mark.parametrize("name", BANDS)
@pytest.mark.parametrize("length", [5, 16, 37, 64])
def test_banded_flash_equals_the_whole_matrix(name: str, length: int) -> None:
    torch.manual_seed(0)
    bands, scalings = BANDS[name], [0.25, 0.3, 0.2][: len(BANDS[name])]
    make = lambda: torch.randn(2, 3, length, 16, requires_grad=True)  # noqa: E731
    turned, value = [(make(), make()) for _ in bands], make()
    plan = pieces(bands, length)
    assert plan is not None
    output, wanted = banded_flash(turned, value, scalings, plan), _whole(turned, value, scalings, bands)
    assert (output - wanted).abs().max() < 1e-5
    leaves = [x for pair in turned for x in pair] + [value]
    upstream = torch.randn_like(output)
    ours = torch.autograd.grad(output, leaves, upstream, allow_unused=True)
    theirs = torch.autograd.grad(wanted, leaves, upstream.double(), allow_unused=True)
    for got, want in zip(ours, theirs, strict=True):
        got = torch.zeros(1) if got is None else got
        assert (got - (0.0 if want is None else want)).abs().max() < 2e-5


def test_a_band_that_no_call_of_the_kernel_has_is_not_planned() -> None:
    assert pieces([Band(0, 2, _same, _same, unit=8), Band(2, None, _same, _same, unit=8)], 64) is None


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_bias_in_blocks_equals_the_whole(monkeypatch: pytest.MonkeyPatch, causal: bool, kv_heads: int) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(biased_module, "BLOCK_SCORES", 700)  # 29 queries then take more than one block
    query = torch.randn(2, 4, 29, 8, requires_grad=True)
    key, value = (torch.randn(2, kv_heads, 29, 8, requires_grad=True) for _ in range(2))
    table = torch.randn(1, 4, 29, 29, requires_grad=True)
    mask = None if causal else torch.ones(2, 1, 29, 29, dtype=torch.bool)
    if mask is not None:
        mask[0, :, :, :5] = False  # left padding: the first rows see nothing where the triangle is added
        mask = mask & torch.ones(29, 29, dtype=torch.bool).tril()
    output = biased(query, key, value, mask, causal, lambda rows, columns: table[:, :, rows, columns], scaling=0.3)
    wide = (key.repeat_interleave(4 // kv_heads, dim=1), value.repeat_interleave(4 // kv_heads, dim=1))
    logits = query @ wide[0].transpose(2, 3) * 0.3 + table
    allowed = torch.ones(29, 29, dtype=torch.bool).tril() if mask is None else mask
    wanted = (logits.masked_fill(~allowed, -1e30).softmax(dim=-1) @ wide[1]).transpose(1, 2)
    real = slice(None) if mask is None else slice(5, None)
    assert output.isfinite().all()
    assert (output - wanted)[:, real].abs().max() < 1e-5
    leaves = [query, key, value, table]
    ours = torch.autograd.grad(output[:, real].square().sum(), leaves)
    theirs = torch.autograd.grad(wanted[:, real].square().sum(), leaves)
    for got, want in zip(ours, theirs, strict=True):
        assert (got - want).abs().max() < 1e-4 * want.abs().max()
