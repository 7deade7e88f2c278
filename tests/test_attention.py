"""Attention forms against the plainest one: the same softmax over the whole matrix of logits, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pospatch.attention import blockwise as blockwise_module
from pospatch.attention import toeplitz as toeplitz_module
from pospatch.attention._mask import triangle
from pospatch.attention.biased import biased
from pospatch.attention.flash import banded_flash, pieces, reach
from pospatch.attention.toeplitz import toeplitz
from pospatch.methods._base import Band


def _same(x: Tensor) -> Tensor:
    return x


BANDS = {
    "near and far": [Band(0, 8, _same, _same), Band(8, None, _same, _same)],
    "three": [Band(0, 1, _same, _same), Band(1, 12, _same, _same), Band(12, None, _same, _same)],
    "chunks": [Band(0, 1, _same, _same, unit=8), Band(1, 2, _same, _same, unit=8), Band(2, None, _same, _same, unit=8)],
    "a wide middle": [Band(0, 6, _same, _same), Band(6, 30, _same, _same), Band(30, None, _same, _same)],
    "nothing far": [Band(0, 100, _same, _same), Band(100, None, _same, _same)],
}


def _whole(turned: Any, value: Tensor, scalings: Sequence[float], bands: Sequence[Band]) -> Tensor:
    queries, length = turned[0][0].shape[2], value.shape[2]
    index = torch.arange(length)
    rows = index[length - queries :, None]
    logits = torch.full((*value.shape[:2], queries, length), float("-inf"), dtype=torch.float64)
    for (query, key), band, scaling in zip(turned, bands, scalings, strict=True):
        distance = rows // band.unit - index[None] // band.unit
        holds = (distance >= band.start) & (rows >= index[None])
        if band.stop is not None:
            holds = holds & (distance < band.stop)
        logits = torch.where(holds, query.double() @ key.double().transpose(-1, -2) * scaling, logits)
    return logits.softmax(dim=-1) @ value.double()


@pytest.mark.parametrize("name", BANDS)
@pytest.mark.parametrize("length", [5, 16, 37, 64])
@pytest.mark.parametrize("queries", [1.0, 0.8, 0.45, 0.2, 0.0])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_banded_flash_equals_the_whole_matrix(name: str, length: int, queries: float, kv_heads: int) -> None:
    """The queries are this share of the tokens, the last ones, and at least one."""
    torch.manual_seed(0)
    bands, scalings = BANDS[name], [0.25, 0.3, 0.2][: len(BANDS[name])]
    rows = max(1, round(queries * length))
    make = lambda heads, tokens=length: torch.randn(2, heads, tokens, 16, requires_grad=True)  # noqa: E731
    turned, value = [(make(4, rows), make(kv_heads)) for _ in bands], make(kv_heads)
    plan = pieces(bands, rows, length)
    assert plan is not None
    held = [(q, k[:, :, reach(plan, index)]) for index, (q, k) in enumerate(turned)]
    output = banded_flash(held, value, scalings, plan)
    wide = lambda x: x.repeat_interleave(4 // kv_heads, dim=1)  # noqa: E731
    wanted = _whole([(q, wide(k)) for q, k in turned], wide(value), scalings, bands)
    assert (output - wanted).abs().max() < 1e-5
    leaves = [x for pair in turned for x in pair] + [value]
    upstream = torch.randn_like(output)
    ours = torch.autograd.grad(output, leaves, upstream, allow_unused=True)
    theirs = torch.autograd.grad(wanted, leaves, upstream.double(), allow_unused=True)
    for got, want in zip(ours, theirs, strict=True):
        got = torch.zeros(1) if got is None else got
        assert (got - (0.0 if want is None else want)).abs().max() < 2e-5


def test_a_band_that_no_call_of_the_kernel_has_is_not_planned() -> None:
    assert pieces([Band(0, 2, _same, _same, unit=8), Band(2, None, _same, _same, unit=8)], 64, 64) is None


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_bias_in_blocks_equals_the_whole(monkeypatch: pytest.MonkeyPatch, causal: bool, kv_heads: int) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(blockwise_module, "BLOCK_SCORES", 700)  # 29 queries then take more than one block
    monkeypatch.setattr(blockwise_module, "KEPT_SCORES", 1)
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


@pytest.mark.parametrize("steep", [True, False])
@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("queries", "keys"), [(29, 29), (300, 300), (130, 301), (2, 2)])
def test_toeplitz_equals_the_whole_bias(
    monkeypatch: pytest.MonkeyPatch, steep: bool, learned: bool, causal: bool, kv_heads: int, queries: int, keys: int
) -> None:
    """Where it falls off steeply, heads look as far as they must, each about as far as its window."""
    monkeypatch.setattr(toeplitz_module, "BLOCK_SCORES", 2 * 4 * keys * 11)  # several blocks in the backward pass too
    torch.manual_seed(0)
    make = lambda heads, length: torch.randn(2, heads, length, 8, dtype=torch.float64, requires_grad=True)  # noqa: E731
    query, key, value = make(4, queries), make(kv_heads, keys), make(kv_heads, keys)
    bias = torch.randn(4, queries + keys - 1, dtype=torch.float64)
    if steep:
        away = (torch.arange(keys - 1, -queries, -1)).abs()
        bias -= torch.tensor([8.0, 2.0, 0.05, 0.7])[:, None] * away
        bias[3, 0] = 0.0  # a peak far off is seen
    groups = toeplitz_module._groups(query, key, bias, causal, 0.3)
    assert (min(group.back for group in groups) < keys - 1) == (steep and queries > 128 and kv_heads > 1)
    bias.requires_grad_(learned)
    output = toeplitz(query, key, value, bias, causal, 0.3)
    m, n = torch.arange(keys - queries, keys)[:, None], torch.arange(keys)[None]
    wide = [x.repeat_interleave(4 // kv_heads, dim=1) for x in (key, value)]
    logits = query @ wide[0].transpose(2, 3) * 0.3 + bias[:, keys - 1 - (m - n)]
    if causal:
        logits = logits.masked_fill(m < n, float("-inf"))
    wanted = logits.softmax(dim=-1) @ wide[1]
    assert (output - wanted).abs().max() < 1e-12
    leaves = [query, key, value, *([bias] if learned else [])]
    upstream = torch.randn_like(output)
    ours, theirs = (torch.autograd.grad(x, leaves, upstream) for x in (output, wanted))
    for got, want in zip(ours, theirs, strict=True):
        assert (got - want).abs().max() < 1e-11


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_toeplitz_in_narrow_types_keeps_the_bias_exact(dtype: torch.dtype, learned: bool) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 200, 16).to(dtype).requires_grad_() for _ in range(3))
    bias = torch.randn(2, 399) - torch.tensor([[2.0], [0.1]]) * torch.arange(199, -200, -1).abs()
    bias.requires_grad_(learned)
    assert len(toeplitz_module._groups(query, key, bias, True, 0.25)) == 2
    output = toeplitz(query, key, value, bias, True, 0.25)
    wide = [x.detach().float().requires_grad_() for x in (query, key, value)]
    wanted = toeplitz(*wide, bias, True, 0.25)
    assert output.dtype == dtype
    assert (output.float() - wanted).abs().max() < 2e-2
    upstream, last = torch.randn(1, 2, 200, 16), [bias] if learned else []
    ours = torch.autograd.grad(output, [query, key, value, *last], upstream.to(dtype))
    theirs = torch.autograd.grad(wanted, [*wide, *last], upstream)
    for got, want in zip(ours, theirs, strict=True):
        assert (got.float() - want).abs().max() < 3e-2 * want.abs().max()


def test_triangle_tells_plain_calls_from_others() -> None:
    where = torch.arange(3, 9)[None]
    lower = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    added = torch.zeros(lower.shape).masked_fill(~lower, torch.finfo(torch.float32).min)
    for mask, want in ((None, True), (lower, True), (added, True), (torch.ones_like(lower), False)):
        assert triangle(mask, mask is None, where, where) is want
    assert triangle(None, False, where, where) is False
    assert triangle(lower[:, :, 4:], False, where[:, 4:], where) is True
    learnt = torch.zeros_like(lower, dtype=torch.float32).requires_grad_()
    assert triangle(learnt, False, where, where) is None  # its gradient is wanted
    padded, biased_mask = lower.clone(), added.clone()
    padded[..., 0] = False
    biased_mask[0, 0, 5, 2] = -1.0
    for mask in (padded, biased_mask, lower.triu()):
        assert triangle(mask, False, where, where) is None
    assert triangle(None, True, where[:, 4:], where) is None
    assert triangle(None, True, where * 2, where * 2) is None
    assert triangle(lower, False, where + 1, where) is None
