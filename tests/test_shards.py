"""What a process computes from its part of a sequence is that part of the whole; what would not be is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import pospatch
from pospatch import registry
from pospatch.errors import UnsupportedHost
from pospatch.methods import _base as kinds
from pospatch.methods._shards import SCHEMES, TEXT, allowed, example, refusal
from pospatch.training.processes import check_patch
from tests import tiny
from tests.processes import patched, shard

LENGTH = 96  # beyond the trained length of TEXT, so that what goes by the length shows
ON_TEXT = [name for name in registry.names() if example(registry.method_class(name)) is not None]
Function = Callable[[Tensor], Tensor]
_patched = cache(patched)


def _function(method: Any, length: int = LENGTH) -> tuple[Function, int] | None:
    """What a method computes from positions (1, tokens) alone, and the dimension of the tokens; None where it needs more."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(value.shape, generator=generator) for name, value in method.weights(TEXT).items()}
    everywhere = torch.arange(LENGTH)[None]
    if isinstance(method, kinds.Rotary):
        x = torch.randn(1, TEXT.heads, LENGTH, TEXT.head_dim, generator=generator)
        seen = torch.tensor([[length]]) if method.dynamic else None
        return lambda at: method.rotate(x[:, :, at[0]], at, "key", weights, TEXT, seen), 2
    if isinstance(method, kinds.Bias):
        return lambda at: method.bias(at, everywhere, weights, TEXT), 2
    if isinstance(method, kinds.QueryScale):
        return lambda at: method.factor_at(at, TEXT), 1
    if isinstance(method, kinds.Embedding):
        table = method.table(TEXT)
        rows = lambda at: table[at.clamp(max=len(table) - 1)]  # noqa: E731
        return (lambda at: method.vectors(rows(at), weights)) if weights else rows, 1
    if isinstance(method, kinds.Index) and not method.by_token:
        return lambda at: method.positions(at, TEXT, kinds.Forward()), 1
    return None


@pytest.mark.parametrize("order", ["contiguous", "head-tail"])
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", ON_TEXT)
def test_a_part_computes_its_part_of_the_whole(name: str, ranks: int, order: str) -> None:
    method = example(registry.method_class(name))
    made = _function(method)
    if made is None:  # it reads keys, hidden states or tokens: a part alone cannot know
        assert isinstance(method, kinds.Nothing | kinds.Norm) or refusal(method, "ring")
        return
    function, dimension = made
    whole = function(torch.arange(LENGTH)[None])
    for rank in range(ranks):
        own = shard(LENGTH, rank, ranks, order)
        torch.testing.assert_close(function(own[None]), whole.index_select(dimension, own), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in ON_TEXT if not registry.method_class(n).exact_decode])
def test_a_length_read_from_a_part_is_another_length(name: str) -> None:
    method = example(registry.method_class(name))
    first = shard(LENGTH, 0, 2, "contiguous")
    right, local = _function(method), _function(method, length=len(first))
    assert right is not None
    assert local is not None
    assert (right[0](first[None]) - local[0](first[None])).abs().max() > 1e-2
    assert "length" in str(refusal(method, "ring"))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ON_TEXT)
def test_training_refuses_what_the_table_leaves_out(name: str, scheme: str) -> None:
    model = _patched(name)
    if scheme in allowed(registry.method_class(name)):
        check_patch(model, scheme)
        return
    with pytest.raises(UnsupportedHost, match=rf"{name} cannot be trained under {scheme}: it \w+"):
        check_patch(model, scheme)


def test_a_rule_of_a_table_counts_too() -> None:
    model = pospatch.apply(tiny.build("gpt2"), "learned", length=2 * tiny.LENGTH, resize="grid")
    with pytest.raises(UnsupportedHost, match="length of each document"):
        check_patch(model, "ring")


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_models_own_rule_of_length_counts_too(kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": tiny.LENGTH}
    model = tiny.llama(rope_parameters=rope)
    check_patch(model, "fsdp")
    with pytest.raises(UnsupportedHost, match=f"own rotary encoding .*{kind}"):
        check_patch(model, "ring")
    check_patch(pospatch.apply(copy.deepcopy(model), "alibi"), "packing")  # nothing rotates any more
    with pytest.raises(UnsupportedHost, match=f"own rotary encoding .*{kind}"):
        check_patch(pospatch.apply(model, "alibi", layers=[0]), "packing")
