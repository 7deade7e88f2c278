"""Advice: what is suggested can be applied, the bounds are those of the papers, the facts those of the config."""

from __future__ import annotations

import json
import math

import pytest
import torch
import transformers as tf

import pospatch
from pospatch import advise
from pospatch.advice import _bounds
from pospatch.advice._facts import facts_of
from pospatch.errors import BadOption, BadOptionType
from tests import tiny

LENGTHS = [2, 3, 16, 100]  # times the trained length


@pytest.mark.parametrize("host", tiny.HOSTS)
@pytest.mark.parametrize("times", LENGTHS)
def test_whatever_is_suggested_can_be_applied(host, times):
    model = tiny.build(host)
    advice = advise(model, times * tiny.LENGTH)
    windowed = any("every layer sees at most" in warning for warning in advice.warnings)
    assert bool(advice.suggestions) != (advice.trained_length is None or windowed)
    for each in advice.suggestions:
        assert each.why
        target = tiny.build(host)
        pospatch.apply(target, list(each.methods), **each.options)
        assert pospatch.inspect(target).method == each.methods[-1]
        scope = {"pospatch": pospatch, "model": tiny.build(host)}
        exec(each.call, scope)
        assert pospatch.inspect(scope["model"]).stack == pospatch.inspect(target).stack


@pytest.mark.parametrize("host", tiny.HOSTS)
def test_within_the_trained_length_nothing_is_suggested(host):
    advice = advise(tiny.build(host), tiny.LENGTH)
    assert advice.suggestions == ()
    assert "Nothing has to be changed" in str(advice)


@pytest.mark.parametrize("host", tiny.HOSTS)
def test_a_config_alone_gives_the_same_advice(host, tmp_path):
    model = tiny.build(host)
    model.save_pretrained(tmp_path / "model")
    for each in (tmp_path / "model" / "model.safetensors").parent.glob("*.safetensors"):
        each.unlink()
    from_files, from_model = (advise(each, 128).to_dict() for each in (tmp_path / "model", model))
    for advice in (from_files, from_model):
        del advice["model"]
    assert from_files == from_model
    assert json.loads(json.dumps(from_files)) == json.loads(json.dumps(from_model))


def test_a_patched_checkpoint_is_advised_by_its_base(tmp_path):
    model = pospatch.apply(tiny.build("llama"), "self_extend", group_size=4)
    model.save_pretrained(tmp_path)
    assert advise(tmp_path, 64).trained_length == tiny.LENGTH


def test_the_order_follows_the_factor():
    def first(times):
        return advise(tiny.build("llama"), times * tiny.LENGTH).suggestions[0]

    assert (first(2).methods, first(2).options, first(2).needs) == (("yarn",), {"factor": 2.0}, "nothing")
    assert first(16).methods == ("self_extend",)
    far = advise(tiny.build("llama"), 100 * tiny.LENGTH).suggestions
    assert next(each for each in far if each.methods == ("yarn",)).needs == "training"


@pytest.mark.parametrize("trained", [32, 4096, 8192])
@pytest.mark.parametrize("times", [1.5, 2, 8, 20, 50])
def test_the_group_is_the_smallest_that_the_rule_allows(trained, times):
    length, window = int(trained * times), min(1024, trained // 4)
    group = _bounds.self_extend_group(trained, length, window)
    allowed = [g for g in range(2, 65) if window + (length - window) / g < 2 / 3 * trained]
    assert group == (allowed[0] if allowed else None)


def test_bounds():
    base, rotated, length = 10000.0, 128, 50000
    slowest = base ** (-(rotated - 2) / rotated)
    assert _bounds.turns(base, rotated, length) == pytest.approx(slowest * length / (2 * math.pi))
    assert _bounds.turns(_bounds.aliasing_base(rotated, length), rotated, length) == pytest.approx(1)
    stable = _bounds.stable_base(length, 12)
    assert math.cos(length / stable) ** 12 == pytest.approx(0.9)
    assert _bounds.precision_base() == 1 / torch.finfo(torch.float32).eps


def test_reasons_name_the_bound_that_the_base_misses():
    low = advise(tiny.llama(rope_parameters={"rope_type": "default", "rope_theta": 10.0}), 4096)
    assert any("below the base" in reason and "aliasing" in reason for reason in low.reasons)
    high = advise(tiny.llama(rope_parameters={"rope_type": "default", "rope_theta": 1e7}), 64)
    assert any("above the lower bounds" in reason for reason in high.reasons)
    assert any("epsilon of float32" in warning for warning in high.warnings)


def test_warnings():
    def warned(model, length=128):
        return "\n".join(advise(model, length).warnings)

    assert "1 of 2 layers see at most 6 tokens" in warned(tiny.build("gemma3"))
    assert "every layer sees at most 8 tokens" in warned(
        tf.MistralForCausalLM(tf.MistralConfig(**{**tiny._ROTARY, "sliding_window": 8}))
    )
    scaled = tiny.llama(
        max_position_embeddings=64,
        rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32},
    )
    assert "scales its rotary encoding already" in warned(scaled)
    assert "from 32 tokens" in warned(scaled)
    assert advise(scaled, 128).trained_length == pospatch.inspect(scaled).trained_length == 64
    assert advise(scaled, 128).factor == 2.0  # what `apply` would be given
    assert "vLLM" in warned(tiny.build("llama"))
    assert "short texts" in warned(tiny.build("llama"))
    assert "vLLM" not in warned(tiny.build("gpt2"))
    assert "short_guard" in warned(tiny.build("llama"))
    assert "pair_ranking" in warned(tiny.build("bert"))


@pytest.mark.parametrize("host", ["llama", "gemma3"])
def test_the_cache_has_the_size_that_a_real_one_has(host):
    model, length = tiny.build(host), 20
    with torch.no_grad():
        cache = model(tiny.ids(length=length), use_cache=True).past_key_values
    real = sum(each.nbytes for layer in cache.layers for each in (layer.keys, layer.values))
    window = facts_of(model).windows
    slack = sum(1 for each in window if each is not None and each < length)  # transformers keeps window - 1 tokens
    one = 2 * facts_of(model).kv_heads * facts_of(model).head_dim * 4
    assert advise(model, length).cache_bytes == real + slack * one


@pytest.mark.parametrize("length", [0, -1])
def test_bad_lengths(length):
    with pytest.raises(BadOption, match="positive"):
        advise(tiny.build("llama"), length)


@pytest.mark.parametrize("model", [3, None, object()])
def test_bad_models(model):
    with pytest.raises(BadOptionType, match="config"):
        advise(model, 64)


def test_no_bool_and_no_missing_folder(tmp_path):
    with pytest.raises(BadOptionType, match="integer"):
        advise(tiny.build("llama"), True)
    with pytest.raises(BadOption, match="no config"):
        advise(str(tmp_path), 64)
