"""Caches and ways of generating: every one of them gives the tokens that whole passes over the text give."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

import pospatch
from tests import tiny

NEW = 8
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("alibi", {}),
    ("t5_bias", {}),
    ("rope", {"rope_theta": 500.0}),
    ("xpos", {}),
    ("self_extend", {"group_size": 2, "window": 4}),
]
HOSTS = ["llama", "gpt2", "mistral"]
ROTATED = ("self_extend",)
PAIRS = [(host, *item) for host in HOSTS for item in METHODS if host != "gpt2" or item[0] not in ROTATED]
pairs = pytest.mark.parametrize(("host", "method", "options"), PAIRS, ids=[f"{h}-{m}" for h, m, _ in PAIRS])


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def patched(host: str, method: str, options: dict[str, Any]) -> Any:
    model = pospatch.apply(tiny.build(host), method, **options)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    return model


def greedy(model: Any, ids: Tensor) -> Tensor:
    """Greedy tokens from whole passes without any cache."""
    for _ in range(NEW):
        ids = torch.cat((ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)), dim=1)
    return ids


def generate(model: Any, ids: Tensor, **keywords: Any) -> Tensor:
    return model.generate(ids, max_new_tokens=NEW, do_sample=False, **keywords)


@pairs
@pytest.mark.parametrize("cache", ["dynamic", "static", "offloaded", "offloaded_static"])
def test_generation_through_every_cache(host: str, method: str, options: dict[str, Any], cache: str) -> None:
    model, ids = patched(host, method, options), tiny.ids(length=10)
    wanted = greedy(model, ids)
    if cache.startswith("offloaded") and not torch.cuda.is_available():
        got = _through_offloaded(model, ids, cache)
    else:
        got = generate(model, ids, cache_implementation=cache)
    assert torch.equal(got, wanted)


def _through_offloaded(model: Any, ids: Tensor, cache: str) -> Tensor:
    """The offloaded caches move layers between devices on a stream of a GPU; without one the same cache stays where it is."""
    if cache == "offloaded":
        return generate(model, ids, past_key_values=tf.DynamicCache(config=model.config))
    held = tf.StaticCache(config=model.config, max_cache_len=ids.shape[1] + NEW)
    return generate(model, ids, past_key_values=held)


@pairs
def test_beams_reorder_what_is_cached(host: str, method: str, options: dict[str, Any]) -> None:
    """Beam search with a cache gives the sequences of beam search without one."""
    model, ids = patched(host, method, options), tiny.ids(batch=2, length=9)
    with_cache = model.generate(ids, max_new_tokens=NEW, num_beams=3, do_sample=False)
    without = model.generate(ids, max_new_tokens=NEW, num_beams=3, do_sample=False, use_cache=False)
    assert torch.equal(with_cache, without)


@pairs
def test_sampling_draws_the_same(host: str, method: str, options: dict[str, Any]) -> None:
    model, ids = patched(host, method, options), tiny.ids(length=9)
    drawn = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        drawn.append(model.generate(ids, max_new_tokens=NEW, do_sample=True, top_k=20, use_cache=use_cache))
    assert torch.equal(*drawn)


@pairs
def test_assisted_decoding_rolls_back(host: str, method: str, options: dict[str, Any]) -> None:
    """A differently patched assistant proposes, the cache is cropped where it was wrong, and the tokens are the model's own."""
    model, ids = patched(host, method, options), tiny.ids(length=9)
    assistant = patched(host, "nope", {})
    assert torch.equal(generate(model, ids, assistant_model=assistant), greedy(model, ids))


@pairs
def test_chunked_prefill_and_a_kept_cache(host: str, method: str, options: dict[str, Any]) -> None:
    model, ids = patched(host, method, options), tiny.ids(length=18)
    wanted = model(input_ids=ids, use_cache=False).logits
    cache = tf.DynamicCache(config=model.config)
    pieces = [
        model(input_ids=part, past_key_values=cache, use_cache=True).logits for part in ids.split([7, 5, 1, 5], dim=1)
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    kept = copy.deepcopy(cache)
    first = greedy(model, ids)
    assert torch.equal(generate(model, first[:, :19], past_key_values=kept)[:, : first.shape[1]], first)


@pairs
def test_embeddings_as_input(host: str, method: str, options: dict[str, Any]) -> None:
    model, ids = patched(host, method, options), tiny.ids(length=9)
    embeds = model.get_input_embeddings()(ids)
    new = model.generate(inputs_embeds=embeds, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(new, greedy(model, ids)[:, 9:])


@pairs
def test_left_padded_batches(host: str, method: str, options: dict[str, Any]) -> None:
    model = patched(host, method, options)
    short, long = tiny.ids(length=7, seed=1), tiny.ids(length=12, seed=2)
    padded = torch.cat((torch.zeros(1, 5, dtype=torch.long), short), dim=1)
    batch, mask = torch.cat((padded, long)), torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    out = generate(model, batch, attention_mask=mask)
    assert torch.equal(out[0, 5:], greedy(model, short)[0])
    assert torch.equal(out[1], greedy(model, long)[0])


def test_a_sliding_static_cache() -> None:
    """Mistral's window of 6 on a static cache: keys are overwritten, and their positions with them."""
    model, ids = patched("mistral", "alibi", {}), tiny.ids(length=10)
    wanted = greedy(model, ids)
    held = tf.StaticCache(config=model.config, max_cache_len=ids.shape[1] + NEW)
    assert any("Sliding" in type(layer).__name__ for layer in held.layers)
    assert torch.equal(generate(model, ids, past_key_values=held), wanted)


class RoundedLayer(tf.cache_utils.QuantizedLayer):
    """A quantized layer without a backend to install: keys and values are kept to 8 bits, as the real ones keep them."""

    def _quantize(self, tensor: Tensor, axis: int) -> Any:
        scale = tensor.abs().amax() / 127
        return (tensor / scale).round().to(torch.int8), scale

    def _dequantize(self, quantized: Any) -> Tensor:
        values, scale = quantized
        return values.float() * scale


@pytest.mark.parametrize(("method", "options"), METHODS, ids=[m for m, _ in METHODS])
def test_a_quantized_cache(method: str, options: dict[str, Any]) -> None:
    """What the cache keeps is what it would keep of a native model: rotated keys to 8 bits; the error is theirs alone."""
    model, ids = patched("llama", method, options), tiny.ids(length=16)
    wanted = model(input_ids=ids, use_cache=False).logits
    cache = tf.Cache(layers=[RoundedLayer(residual_length=4) for _ in range(model.config.num_hidden_layers)])
    pieces = [model(input_ids=ids[:, :8], past_key_values=cache, use_cache=True).logits]
    pieces += [model(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits for i in range(8, 16)]
    got = torch.cat(pieces, dim=1)
    assert (got - wanted).abs().mean() < 0.15 * wanted.std()
