"""Bad input: every mistake is a PospatchError and the matching builtin, says what was got, and leaves the model as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as tf

import pospatch
from pospatch import registry
from pospatch.errors import (
    AlreadyPatched,
    BadOption,
    BadOptionType,
    NotPatched,
    PospatchError,
    SeamChanged,
    UnknownName,
    UnsupportedHost,
)
from tests import tiny

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
)


def snapshot(model: Any) -> dict[str, Any]:
    """Everything about a model that a refused call must not touch."""
    with torch.no_grad():
        outputs = tiny.logits(model, tiny.ids(2, 12))
    return {
        "outputs": outputs,
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "objects": {name: id(value) for name, value in model.named_parameters(remove_duplicate=False)},
        "buffers": {name: value.clone() for name, value in model.named_buffers()},
        "grads": {name: value.requires_grad for name, value in model.named_parameters()},
        "classes": {name: type(module) for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "hooks": {
            (name, kind): [id(hook) for hook in getattr(module, kind).values()]
            for name, module in model.named_modules()
            for kind in HOOKS
        },
        "config": copy.deepcopy(model.config.to_dict()),
        "config object": id(model.config),
        "config fields": sorted(vars(model.config)),
        "configs": {name: id(vars(m)["config"]) for name, m in model.named_modules() if "config" in vars(m)},
        "attention": model.config._attn_implementation,
        "training": {name: module.training for name, module in model.named_modules()},
    }


def assert_same(now: Any, before: Any, where: str = "model") -> None:
    if isinstance(before, dict):
        assert list(now) == list(before), where
        for key in before:
            assert_same(now[key], before[key], f"{where}/{key}")
    elif torch.is_tensor(before):
        assert torch.equal(now, before), where
    else:
        assert now == before, where


def refused(model: Any, errors: tuple[type, ...], words: list[str], method: Any, **options: Any) -> None:
    """The call raises a PospatchError that is each of `errors`, says each of `words`, and changes nothing."""
    before = snapshot(model)
    with pytest.raises(pospatch.PospatchError) as caught:
        pospatch.apply(model, method, **options)
    for kind in errors:
        assert isinstance(caught.value, kind), (type(caught.value), kind)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert_same(snapshot(model), before)


NAN, INF = float("nan"), float("inf")
OUT_OF_RANGE = [NAN, INF, -INF, 0, -4, 0.5, 1e308]
WRONG_TYPE = ["4", None, True, [4], {}, 4j, range(2)]
FACTORED = ["linear", "ntk", "dynamic_ntk", "yarn", "llama3", "longrope"]


@pytest.mark.parametrize("method", FACTORED)
@pytest.mark.parametrize("value", OUT_OF_RANGE, ids=str)
def test_factor_out_of_range(method: str, value: float) -> None:
    with pytest.raises(BadOption, match="factor") as caught:
        registry.build(method, factor=value)
    assert isinstance(caught.value, ValueError)
    assert repr(value) in str(caught.value)


RANGE, KIND, NAME = (BadOption, ValueError), (BadOptionType, TypeError, ValueError), (UnknownName, ValueError)
ORIGINAL = "original_max_position_embeddings"
PATHS = ("os:system", "../yarn", "pospatch.methods.yarn", "methods/yarn", "_base", "__init__")
LLAMA = [
    # errors, words, method, options
    *((RANGE, ["factor", repr(value)], "yarn", {"factor": value}) for value in OUT_OF_RANGE),
    *((KIND, ["factor", repr(value)], "yarn", {"factor": value}) for value in WRONG_TYPE),
    *(
        ((ValueError,), [ORIGINAL, repr(value)], method, {"factor": 2, ORIGINAL: value})
        for method in ("yarn", "longrope", "llama3", "dynamic_ntk")
        for value in (0, -32, 32.5)
    ),
    (KIND, [ORIGINAL, "'32'"], "yarn", {"factor": 2, ORIGINAL: "32"}),
    *(
        (RANGE, ["short_factor"], "longrope", {"factor": 2, "short_factor": value})
        for value in ([1.0, NAN, 1.0, 1.0], [1.0, 0, 1.0, 1.0], [1.0, -1.0, 1.0, 1.0], [1.0, INF, 1.0, 1.0])
    ),
    (RANGE, ["short_factor", "3 numbers", "4"], "longrope", {"factor": 2, "short_factor": [1.0, 1.0, 1.0]}),
    (RANGE, ["long_factor", "9 numbers", "4"], "longrope", {"factor": 2, "long_factor": [1.0] * 9}),
    *(
        (KIND, ["short_factor"], "longrope", {"factor": 2, "short_factor": value})
        for value in ("1,1,1,1", 1.0, [1.0, "1", 1.0, 1.0], [True] * 4, {"a": 1})
    ),
    *((RANGE, ["num_buckets", repr(value)], "t5_bias", {"num_buckets": value}) for value in (0, -1, 2.5, 10**12)),
    (KIND, ["num_buckets", "'16'"], "t5_bias", {"num_buckets": "16"}),
    (RANGE, ["max_distance", "0"], "t5_bias", {"max_distance": 0}),
    *(
        (RANGE, [option, repr(value)], "self_extend", {option: value})
        for option in ("group_size", "window")
        for value in (0, -1, 2.5, NAN)
    ),
    *((KIND, [option, "'4'"], "self_extend", {option: "4"}) for option in ("group_size", "window")),
    (NAME, ["yran", "Did you mean 'yarn'", "linear"], "yran", {"factor": 2}),
    (NAME, ["yarn"], "", {}),
    *((NAME, ["yarn"], name, {}) for name in PATHS),
    *((KIND, ["yarn"], item, {}) for item in (None, range(2), 3, b"yarn")),
    (KIND, ["facter", "Did you mean 'factor'"], "yarn", {"facter": 2}),
    (KIND, ["factor", "required"], "yarn", {}),
    (KIND, ["window"], "yarn", {"factor": 2, "window": 4}),
    (RANGE, ["low_freq_factor", "high_freq_factor"], "llama3", {"factor": 2, "low_freq_factor": 5.0}),
    (RANGE, ["low_freq_factor", "high_freq_factor"], "llama3", {"factor": 2, "low_freq_factor": 4.0}),
    (RANGE, ["beta_fast", "beta_slow"], "yarn", {"factor": 2, "beta_fast": 1.0, "beta_slow": 1.0}),
    (RANGE, ["layers", "2"], "alibi", {"layers": [2]}),
    *((RANGE, ["layers"], "alibi", {"layers": value}) for value in ([], [True], ["0"], "every:0", "evry:2", 1.5)),
    (RANGE, ["rope_theta"], "rope", {"rope_theta": 0.5}),
    (RANGE, ["partial_rotary_factor", "even"], "rope", {"partial_rotary_factor": 0.4}),
    (RANGE, ["length", "1073741824"], "learned", {"length": 2**30}),
    ((UnsupportedHost, NotImplementedError), ["hierarchical", "table"], "hierarchical", {}),
    ((AlreadyPatched, ValueError), ["nope"], ["nope", "alibi"], {}),
    ((AlreadyPatched, ValueError), ["linear", "yarn", "remove"], [("linear", {"factor": 2}), ("yarn", {"factor": 2})], {}),
    (KIND, ["factor", "with the method"], ["yarn", "dynamic_ntk"], {"factor": 2}),
    (KIND, ["facter", "factor"], ["rope", "yarn"], {"facter": 2}),
]  # fmt: skip


@pytest.mark.parametrize("case", LLAMA, ids=lambda case: f"{case[2]}-{case[3]}"[:60])
def test_refused_on_llama(case: Any, llama: Any) -> None:
    errors, words, method, options = case
    refused(llama, errors, words, method, **options)


@pytest.fixture(scope="module")
def llama() -> Any:
    """One model for all refusals: that it serves them all is the point."""
    return tiny.build("llama")


@pytest.mark.parametrize("host", ["gpt2", "bert"])
@pytest.mark.parametrize("method", FACTORED)
def test_scaling_without_rotary(host: str, method: str) -> None:
    refused(tiny.build(host), (UnsupportedHost, NotImplementedError), [method, "rope"], method, factor=2)


def test_no_order_left_on_an_encoder() -> None:
    refused(tiny.build("bert"), (UnsupportedHost, NotImplementedError), ["nope"], "nope")


def test_a_family_without_a_host() -> None:
    mamba = tf.MambaForCausalLM(tf.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=99, state_size=4)).eval()
    before = {name: value.clone() for name, value in mamba.state_dict().items()}
    for call in (
        lambda: pospatch.apply(mamba, "rope"),
        lambda: pospatch.inspect(mamba),
        lambda: pospatch.methods(mamba),
    ):
        with pytest.raises(UnsupportedHost, match="mamba") as caught:
            call()
        assert isinstance(caught.value, NotImplementedError)
    assert_same(dict(mamba.state_dict()), before)


@pytest.mark.parametrize(
    "thing", [None, 3, "gpt2", torch.nn.Linear(2, 2), object()], ids=lambda thing: type(thing).__name__
)
def test_what_is_no_model(thing: Any) -> None:
    with pytest.raises(UnsupportedHost, match=type(thing).__name__):
        pospatch.apply(thing, "rope")
    with pytest.raises(UnsupportedHost, match=type(thing).__name__):
        pospatch.remove(thing)
    with pytest.raises(PospatchError, match="gpt2" if thing == "gpt2" else type(thing).__name__):
        pospatch.inspect(thing)  # of a string as of a path


@pytest.mark.parametrize("host", ["llama", "gpt2"])
def test_a_held_site(host: str) -> None:
    model = pospatch.apply(tiny.build(host), "alibi")
    refused(model, (AlreadyPatched, ValueError), ["t5_bias", "alibi", "remove"], "t5_bias")
    refused(model, (AlreadyPatched, ValueError), ["nope", "remove"], "nope")
    assert pospatch.inspect(model).method == "alibi"


def test_a_refusal_on_a_patched_model_leaves_the_patch() -> None:
    model = pospatch.apply(tiny.build("llama"), "yarn", factor=2)
    refused(model, (BadOption, ValueError), ["factor"], "yarn", factor=0.5)
    refused(model, (UnsupportedHost,), ["yarn", "rotary"], "alibi")
    assert pospatch.inspect(model).stack == [{"method": "yarn", "factor": 2.0}]


def _own_attention(module: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    """An attention that never asks the registry, although its class's code names it."""
    heads = module.num_heads
    query, key, value = module.c_attn(hidden_states).split(module.split_size, dim=2)
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return module.c_proj(mixed.transpose(1, 2).flatten(2)), None


@pytest.mark.parametrize("method", ["alibi", "rope", "t5_bias"])
def test_attention_that_is_not_reached(method: str) -> None:
    model = tiny.build("gpt2")
    for block in model.transformer.h:
        block.attn.forward = _own_attention.__get__(block.attn)
    refused(model, (pospatch.PospatchError,), ["attn", "GPT2LMHeadModel"], method)


def test_positions_that_are_not_gone() -> None:
    """A second table that no row names: the proof sees that permuted tokens still matter."""
    model = tiny.build("gpt2")
    extra = torch.randn(64, 32)
    model.transformer.drop.register_forward_hook(lambda module, args, output: output + extra[: output.shape[1]])
    before = snapshot(model)
    with pytest.raises(SeamChanged, match="still knows positions") as caught:
        pospatch.apply(model, "alibi")
    assert isinstance(caught.value, RuntimeError)
    assert_same(snapshot(model), before)


@pytest.mark.parametrize("host", ["llama", "gpt2", "bert"])
def test_failure_half_way_leaves_the_model_as_it_was(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pospatch.engine import _attach

    model = tiny.build(host)
    before = snapshot(model)

    def broken(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_attach._native, "write", broken)
    with pytest.raises(KeyboardInterrupt):
        pospatch.apply(model, "alibi")
    assert_same(snapshot(model), before)


@pytest.mark.parametrize("host", ["llama", "gpt2", "bert"])
def test_failure_on_a_patched_model_brings_the_old_patch_back(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pospatch.engine import _patch

    model = pospatch.apply(tiny.build(host), "t5_bias")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".pospatch." in name:
                value.normal_()
    before, proofs = snapshot(model), []

    def fails_once(*args: Any) -> None:
        proofs.append(args)
        if len(proofs) == 1:
            raise SeamChanged("made to fail")

    monkeypatch.setattr(_patch, "prove", fails_once)
    with pytest.raises(SeamChanged, match="made to fail"):
        pospatch.apply(model, "logn")
    after = snapshot(model)
    for kind in ("outputs", "state", "grads", "config", "classes", "objects"):
        assert_same(after[kind], before[kind])


@pytest.mark.parametrize("host", ["llama", "gpt2", "bert"])
def test_removing_twice_and_from_an_unpatched_model(host: str) -> None:
    model = tiny.build(host)
    before = snapshot(model)
    with pytest.raises(NotPatched, match="carries no patch") as caught:
        pospatch.remove(model)
    assert isinstance(caught.value, ValueError)
    pospatch.remove(pospatch.apply(model, "alibi"))
    with pytest.raises(NotPatched):
        pospatch.remove(model)
    assert_same(snapshot(model), before)


def test_applying_twice_changes_nothing_or_replaces() -> None:
    model = pospatch.apply(tiny.build("llama"), "yarn", factor=2)
    before = snapshot(model)
    pospatch.apply(model, "yarn", factor=2.0)
    assert_same(snapshot(model), before)
    pospatch.apply(model, "yarn", factor=4)
    fresh = pospatch.apply(tiny.build("llama"), "yarn", factor=4)
    assert_same(snapshot(model)["outputs"], snapshot(fresh)["outputs"])
    assert_same(snapshot(model)["config"], snapshot(fresh)["config"])


def test_public_names_are_all_there_and_callable() -> None:
    """`pospatch.methods` is also a folder that Python binds under the same name once it is imported."""
    import pospatch.hosts
    import pospatch.methods.yarn

    for name in pospatch.__all__:
        assert name == "__version__" or callable(getattr(pospatch, name)), name
    assert "yarn" in pospatch.methods()
    assert "llama" in pospatch.hosts()
    assert pospatch.methods.yarn.YaRN.name == "yarn"
    with pytest.raises(AttributeError, match="nothing_like_it"):
        pospatch.nothing_like_it  # noqa: B018
