"""Methods of a window and sinks read without end: keys that no later query sees leave the cache, and nothing else changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import pospatch
from pospatch.engine import _forget
from pospatch.errors import BadOption, UnsupportedHost
from pospatch.methods._base import Bands
from pospatch.registry import method_class, names
from tests import tiny

FORGETFUL = [name for name in names() if issubclass(method_class(name), Bands) and method_class(name).forgets]
SLACK, WINDOW, SINKS = 8, 20, 3


@pytest.fixture(autouse=True)
def _little_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_forget, "SLACK", SLACK)


def patched(name: str, **kwargs: Any) -> Any:
    return pospatch.apply(tiny.build("llama", **kwargs), name, sinks=SINKS, window=WINDOW)


def widths(cache: Any) -> list[int]:
    return [layer.keys.shape[2] for layer in cache.layers]


def read(
    model: Any, tokens: torch.Tensor, pieces: list[int], mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, Any, int]:
    """Logits of a text read piece by piece, the cache, and the most keys that a layer held between two pieces."""
    cache, found, most, start = DynamicCache(config=model.config), [], 0, 0
    for size in pieces:
        given = {}
        if mask is not None:
            where = (mask.cumsum(1) - 1).clamp(min=0)[:, start : start + size]  # as `generate` counts
            given = {"attention_mask": mask[:, : start + size], "position_ids": where}
        found.append(model(tokens[:, start : start + size], past_key_values=cache, **given).logits)
        start, most = start + size, max(most, *widths(cache))
    return torch.cat(found, dim=1), cache, most


@pytest.mark.parametrize("name", FORGETFUL)
@pytest.mark.parametrize(
    "pieces", [[1] * 150, [90, *[1] * 60], [40, 34, 46, *[1] * 30]], ids=["steps", "prompt", "chunks"]
)
@torch.no_grad()
def test_a_bounded_cache_gives_the_logits_of_one_forward(name: str, pieces: list[int]) -> None:
    tokens = tiny.ids(2, 150)
    model = patched(name)
    logits, cache, most = read(model, tokens, pieces)
    wanted = tiny.logits(model, tokens)
    assert (logits - wanted).abs().max() < 3e-5 * max(1.0, float(wanted.std()))
    assert most <= SINKS + WINDOW + (2 if max(pieces) == 1 else 5) * SLACK
    assert cache.get_seq_length() == 150


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FORGETFUL)
@torch.no_grad()
def test_pads_on_the_left_stay_invisible(name: str, attention: str) -> None:
    tokens, mask = tiny.ids(2, 150), torch.ones(2, 150, dtype=torch.long)
    mask[0, :11] = 0
    model = patched(name, attention=attention)
    logits, _, most = read(model, tokens, [60, *[1] * 90], mask)
    alone = tiny.logits(model, tokens[:1, 11:])
    assert (logits[:1, 11:] - alone).abs().max() < 3e-5 * max(1.0, float(alone.std()))
    assert most <= 11 + SINKS + WINDOW + 5 * SLACK


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", FORGETFUL)
@torch.no_grad()
def test_generation_says_the_same(monkeypatch: pytest.MonkeyPatch, name: str, beams: int) -> None:
    model, prompt = patched(name), tiny.ids(2, 50)
    ask = {"max_new_tokens": 60, "min_new_tokens": 60, "num_beams": beams, "do_sample": False, "pad_token_id": 0}
    said = model.generate(prompt, **ask)
    monkeypatch.setattr(_forget, "SLACK", 10**6)  # nothing ever leaves
    assert torch.equal(said, model.generate(prompt, **ask))


@pytest.mark.parametrize("name", FORGETFUL)
@torch.no_grad()
def test_a_cache_is_cut_back_as_far_as_it_can_be(name: str) -> None:
    tokens, model = tiny.ids(1, 150), patched(name)
    _, cache, _ = read(model, tokens, [100])
    copied = copy.deepcopy(cache)
    cache.crop(-4 * SLACK)
    assert cache.get_seq_length() == 100 - 4 * SLACK
    rest = model(tokens[:, 100 - 4 * SLACK :], past_key_values=cache).logits
    wanted = tiny.logits(model, tokens)[:, 100 - 4 * SLACK :]
    assert (rest - wanted).abs().max() < 3e-5 * max(1.0, float(wanted.std()))
    with pytest.raises(BadOption, match=f"cut to {100 - 4 * SLACK - 1}.*read the text again"):
        copied.crop(-4 * SLACK - 1)
    copied.reset()
    assert copied.get_seq_length() == 0
    assert (model(tokens, past_key_values=copied).logits - tiny.logits(model, tokens)).abs().max() < 1e-5


@pytest.mark.parametrize("other", [None, "self_extend", "streaming"])
@pytest.mark.parametrize("name", FORGETFUL)
@torch.no_grad()
def test_a_cache_that_keys_have_left_is_read_by_nothing_else(name: str, other: str | None) -> None:
    tokens, model = tiny.ids(1, 101), patched(name)
    _, cache, _ = read(model, tokens, [100])
    pospatch.remove(model)
    if other is not None:
        pospatch.apply(model, other, **({"sinks": SINKS, "window": WINDOW + 9} if other == name else {}))
    with pytest.raises(UnsupportedHost, match=r"keys have left this cache.*read the text again"):
        model(tokens[:, 100:], past_key_values=cache)


@pytest.mark.parametrize("name", FORGETFUL)
@torch.no_grad()
def test_drafts_longer_than_the_slack_are_taken_back(name: str) -> None:
    """Prompt lookup reads a draft in one call and cuts off what was wrong of it."""
    model, prompt = patched(name), tiny.ids(1, 12).repeat(1, 6)
    ask = {"max_new_tokens": 50, "min_new_tokens": 50, "do_sample": False, "pad_token_id": 0}
    drafted = model.generate(prompt, prompt_lookup_num_tokens=3 * SLACK, **ask)
    assert torch.equal(drafted, model.generate(prompt, **ask))
