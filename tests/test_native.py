"""What stays native: bits equal to transformers' own rotary scalings, the host's softcap, window, sinks and backend."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers as tf

import pospatch
from pospatch import registry
from pospatch.engine import _native as written
from pospatch.engine._seams import carry
from pospatch.errors import PospatchError, UnsupportedHost
from pospatch.methods._base import Bands, Rotary, Scaling
from tests import cells, tiny

SHAPES = {
    "grouped": {},
    "wide heads": {"head_dim": 24, "hidden_size": 32},
    "large theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
}
_HALF = {"grouped": 4, "wide heads": 12, "large theta": 4}
# options of pospatch, and what the same is called in transformers' rope_parameters
NATIVE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({"factor": 3.0}, {"rope_type": "linear", "factor": 3.0}),
    "yarn": ({"factor": 4.0}, {"rope_type": "yarn", "factor": 4.0}),
    "yarn, all options": (
        {
            "factor": 3.0,
            "original_max_position_embeddings": 16,
            "beta_fast": 8.0,
            "beta_slow": 2.0,
            "attention_factor": 1.3,
            "truncate": False,
        },
        {
            "rope_type": "yarn",
            "factor": 3.0,
            "original_max_position_embeddings": 16,
            "beta_fast": 8.0,
            "beta_slow": 2.0,
            "attention_factor": 1.3,
            "truncate": False,
        },
    ),
    "llama3": (
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": tiny.LENGTH,
        },
    ),
    "longrope": ({"factor": 4.0}, {"rope_type": "longrope", "factor": 4.0}),
    "dynamic_ntk": ({"factor": 2.0}, {"rope_type": "dynamic", "factor": 2.0}),
}


def _native(shape: str, spelled: dict[str, Any], options: dict[str, Any]) -> Any:
    """The same weights in a model that transformers builds with these rope_parameters."""
    changes = dict(SHAPES[shape])
    old: dict[str, Any] = changes.pop("rope_parameters", {"rope_theta": 1e4})
    parameters = {"rope_theta": old["rope_theta"], **spelled}
    if "short_factor" in options:
        parameters |= {name: options[name] for name in ("short_factor", "long_factor")}
    if spelled["rope_type"] in ("yarn", "longrope"):
        parameters.setdefault("original_max_position_embeddings", tiny.LENGTH)
    length = tiny.LENGTH if spelled["rope_type"] == "dynamic" else int(tiny.LENGTH * spelled["factor"])
    model = tiny.llama(**{**changes, "max_position_embeddings": length, "rope_parameters": parameters})
    model.load_state_dict(_plain(shape).state_dict())
    return model.eval()


def _plain(shape: str) -> Any:
    return tiny.spread(tiny.llama(**SHAPES[shape]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NATIVE)
def test_equal_to_transformers_to_the_bit(name: str, shape: str) -> None:
    options, spelled = (dict(each) for each in NATIVE[name])
    method = name.partition(",")[0]
    if method == "longrope":
        half = _HALF[shape]
        options |= {"short_factor": [1.0 + 0.1 * i for i in range(half)], "long_factor": [1.5 + i for i in range(half)]}
    native, ours = _native(shape, spelled, options), pospatch.apply(_plain(shape), method, **options)
    for length in (20, 90):
        tokens = tiny.ids(2, length)
        fresh = native if method != "dynamic_ntk" else _native(shape, spelled, options)  # its state would carry over
        assert torch.equal(tiny.logits(ours, tokens), tiny.logits(fresh, tokens)), length
    reloaded = type(ours.config).from_dict(ours.config.to_dict())
    again = tf.LlamaForCausalLM(reloaded).eval()
    again.load_state_dict(ours.state_dict())
    assert torch.equal(tiny.logits(again, tiny.ids(2, 90)), tiny.logits(ours, tiny.ids(2, 90)))


LENGTH_DEPENDENT = {
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 8,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0] * 4,
    },
}


@pytest.mark.parametrize(
    "method", [m for m in registry.names() if issubclass(registry.method_class(m), Scaling | Bands)]
)
@pytest.mark.parametrize("kind", LENGTH_DEPENDENT)
@torch.no_grad()
def test_a_rotation_that_changes_with_the_length_is_not_taken_for_a_fixed_one(kind: str, method: str) -> None:
    """The config's own scaling would be dropped without a word; put first, a fixed rotation says that it goes."""
    model, tokens = tiny.spread(tiny.llama(rope_parameters=LENGTH_DEPENDENT[kind])), tiny.ids(1, 60)
    before = tiny.logits(model, tokens)
    example = {**cells.battery(method), **tiny.options(method, tiny.build("llama"))}
    with pytest.raises(UnsupportedHost, match="changes them with the length"):
        pospatch.apply(model, method, **example)
    assert torch.equal(tiny.logits(tiny.spread(model), tokens), before)
    pospatch.apply(model, ["rope", (method, example)])
    assert not torch.allclose(tiny.logits(model, tokens), before)


def test_lists_of_longrope_that_are_equal_are_one_fixed_spectrum() -> None:
    parameters = {**LENGTH_DEPENDENT["longrope"], "short_factor": [3.0] * 4}
    model = pospatch.apply(tiny.spread(tiny.llama(rope_parameters=parameters)), "self_extend", group_size=2, window=4)
    assert pospatch.inspect(model).native is False


def test_one_config_is_made_into_a_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check that transformers takes the config costs more than the patch itself; its answer stays that of the config."""
    made: list[float] = []
    inner = written._made
    monkeypatch.setattr(
        written, "_made", lambda *args: made.append(args[2]["rope_parameters"]["factor"]) or inner(*args)
    )
    model = tiny.build("llama")
    for factor in (4.125, 4.125, 5.125, 4.125):  # of no other test
        assert pospatch.apply(model, "yarn", factor=factor).config.pospatch["native"] is True
        pospatch.remove(model)
    assert made == [4.125, 5.125]
    model.config.note = {1, 2}  # JSON has no sets, so transformers could not save it
    assert pospatch.apply(model, "yarn", factor=4.125).config.pospatch["native"] is False
    assert made == [4.125, 5.125, 4.125]


def test_ntk_is_a_new_base() -> None:
    model = pospatch.apply(tiny.build("llama"), "ntk", factor=4.0)
    dim = model.config.head_dim
    theta = 10000.0 * 4.0 ** (dim / (dim - 2))
    native = tiny.llama(rope_parameters={"rope_type": "default", "rope_theta": theta})
    native.load_state_dict(tiny.build("llama").state_dict())
    tokens = tiny.ids(2, 60)
    assert torch.equal(tiny.logits(model, tokens), tiny.logits(native.eval(), tokens))


@pytest.mark.parametrize("heads", [4, 6])
@pytest.mark.parametrize(
    "build",
    [
        lambda heads: tf.BloomForCausalLM(tf.BloomConfig(hidden_size=48, n_layer=2, n_head=heads, vocab_size=99)),
        lambda heads: tf.MptForCausalLM(tf.MptConfig(d_model=48, n_layers=2, n_heads=heads, vocab_size=99)),
    ],
    ids=["bloom", "mpt"],
)
def test_alibi_on_models_that_have_it_is_their_own(build: Any, heads: int) -> None:
    """Their positions cleared and ours in their place, at head counts that are a power of two and not."""
    model, tokens = tiny.spread(build(heads)), tiny.ids(2, 30)
    native = tiny.logits(model, tokens)
    pospatch.apply(model, "alibi")
    assert (tiny.logits(model, tokens) - native).abs().max() <= 1e-6 * native.abs().max()


def test_only_layers_that_see_far_are_scaled() -> None:
    """Gemma 3 has a base for each type of layer; those with a window keep theirs."""
    model = tiny.build("gemma3")
    rotary = model.model.rotary_emb
    before = {name: value.clone() for name, value in rotary.named_buffers()}
    pospatch.apply(model, "yarn", factor=4.0)
    after = dict(model.model.rotary_emb.host.named_buffers())
    assert torch.equal(after["sliding_attention_inv_freq"], before["sliding_attention_inv_freq"])
    assert not torch.equal(after["full_attention_inv_freq"], before["full_attention_inv_freq"])
    assert model.config.rope_parameters["sliding_attention"]["rope_type"] == "default"
    assert model.config.rope_parameters["full_attention"]["rope_type"] == "yarn"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_frequencies_stay_float32(dtype: torch.dtype) -> None:
    wanted = pospatch.apply(tiny.build("llama"), "yarn", factor=4.0).model.rotary_emb.host.inv_freq
    before = pospatch.apply(tiny.build("llama").to(dtype), "yarn", factor=4.0)
    after = pospatch.apply(tiny.build("llama"), "yarn", factor=4.0).to(dtype)
    for model in (before, after):
        assert torch.equal(model.model.rotary_emb.host.inv_freq, wanted)
    far = torch.tensor([[131070, 131071]])
    cos, _ = after.model.rotary_emb(torch.zeros(1, 2, 8, dtype=torch.float32), far)
    assert not torch.equal(cos[0, 0], cos[0, 1])


# --- backends -----------------------------------------------------------------------------------------------------------

BACKENDS = ("eager", "sdpa", "flex_attention")


@cache
def _backends(host: str, compiled: bool) -> list[str]:
    """The backends with which the unpatched family computes the same on this machine.

    On a processor without AVX-512, torch 2.13 compiles flex attention of few tokens to code that reads beyond its inputs: what
    comes out then is what happened to be in memory, now and then the right thing, so it is not asked there. And sdpa drops the
    softcap of gemma2.
    """
    wanted, found = tiny.logits(tiny.build(host, attention="eager"), tiny.ids(1, 24)), []
    for name in BACKENDS:
        if compiled and name == "flex_attention" and torch.backends.cpu.get_cpu_capability() == "AVX2":
            continue
        model = tiny.build(host)
        try:
            model.set_attn_implementation(name)
            every = [_amid_litter(model) for _ in range(4)]
        except (ValueError, ImportError):
            continue
        if all((got - wanted).abs().max() <= 2e-5 * wanted.abs().max() for got in every):
            found.append(name)
    return found


def _amid_litter(model: Any) -> torch.Tensor:
    """Logits after memory was freed that no computation may read."""
    del [torch.full((2**k,), float("nan")) for k in range(6, 18) for _ in range(4)][:]
    return tiny.logits(model, tiny.ids(1, 24))


def _switched(host: str, method: str, allowed: list[str]) -> None:
    """A patched model goes from one backend to the next and computes the same."""
    tokens = tiny.ids(1, 24)
    model = cells.patched(host, method, attention=allowed[0])
    wanted = tiny.logits(model, tokens)
    for name in allowed[1:]:
        model.set_attn_implementation(name)
        got = tiny.logits(model, tokens)
        assert (got - wanted).abs().max() <= 2e-5 * wanted.abs().max(), name
        other = tiny.logits(cells.patched(host, method, attention=name), tokens)
        assert torch.equal(other, got), name
    pospatch.remove(model)
    assert model.config._attn_implementation == allowed[-1]


SWITCHED = [pytest.param(*pair, id="-".join(pair)) for pair in cells.cells(everything=False) if cells.fits(*pair)]


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(("host", "method"), SWITCHED)
@torch.no_grad()
def test_backends_agree_and_a_later_switch_keeps_the_patch(host: str, method: str) -> None:
    _switched(host, method, _backends(host, compiled=False))


@pytest.mark.slow
@pytest.mark.parametrize(("host", "method"), SWITCHED)
@torch.no_grad()  # flex attention has no backward on a CPU
def test_backends_agree_compiled(host: str, method: str) -> None:
    """As above, flex attention as its users have it."""
    _switched(host, method, _backends(host, compiled=True))


def test_a_backend_that_cannot_carry_a_patch_is_refused() -> None:
    from transformers.modeling_utils import AttentionInterface

    def other(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        return tf.integrations.sdpa_attention.sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("someone_elses", other)
    try:
        model = tiny.build("gpt2")
        model.set_attn_implementation("someone_elses")
        with pytest.raises(PospatchError, match="sdpa"):
            pospatch.apply(model, "alibi")
        model.set_attn_implementation("sdpa")
        pospatch.apply(model, "alibi")
        model.set_attn_implementation("someone_elses")
        with pytest.raises(NotImplementedError, match="sdpa"):
            tiny.logits(model, tiny.ids())
    finally:
        del AttentionInterface._global_mapping["someone_elses"]
        AttentionInterface._global_mapping.pop("pospatch|someone_elses", None)


@pytest.mark.parametrize(
    ("host", "field"),
    [("gemma2", "attn_logit_softcapping"), ("mistral", "sliding_window"), ("granite", "attention_multiplier")],
)
def test_what_the_host_does_to_logits_stays_in_force(host: str, field: str) -> None:
    """Taking it away changes the patched model as it changes the native one."""
    tokens = tiny.ids(1, 28)
    without = tiny.without(host, field)
    for method in cells.kinds():
        if cells.fits(host, method):
            got = tiny.logits(cells.patched(host, method), tokens)
            assert (got - tiny.logits(cells.apply(without(), host, method), tokens)).abs().max() > 0.02, method


def test_sinks_stay_in_force() -> None:
    for method in cells.kinds():
        if cells.fits("gpt_oss", method):
            model, tokens = cells.patched("gpt_oss", method), tiny.ids(1, 28)
            before = tiny.logits(model, tokens)
            with torch.no_grad():
                for name, value in model.named_parameters():
                    if name.endswith("sinks"):
                        value.fill_(-50.0)
            assert (tiny.logits(model, tokens) - before).abs().max() > 0.02, method


# --- nothing of the host is left ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", tiny.HOSTS)
def test_without_positions_and_causality_tokens_have_no_order(host: str) -> None:
    """`nope`, or a relative bias of zeros where the host is two-sided; every token sees every token."""
    model, tokens = tiny.build(host, attention="eager"), tiny.ids(1, 14)
    if host in tiny.CAUSAL:
        pospatch.apply(model, "nope")
    else:
        pospatch.apply(model, "nope", allow_bidirectional=True)
    order = torch.randperm(14, generator=torch.Generator().manual_seed(3))
    everything = torch.zeros(1, 1, 14, 14)
    if model.config.is_encoder_decoder:
        keywords: dict[str, Any] = {"decoder_attention_mask": everything}
    elif host in tiny.CAUSAL:
        windows = getattr(model.config, "layer_types", None)
        keywords = {"attention_mask": dict.fromkeys(set(windows), everything) if windows else everything}
    else:
        keywords = {}
    if host == "opt":  # reckons positions from a mask of two dimensions, natively too
        keywords["position_ids"] = torch.arange(14)[None]
    straight = tiny.logits(model, tokens, **keywords)
    turned = tiny.logits(model, tokens[:, order], **keywords)
    gap = (straight[:, order] - turned).abs().max()
    assert gap <= 1e-5 * straight.abs().max(), f"permuted tokens change the output by {gap:.2e}"


def test_every_spectral_scaling_acts_in_the_hosts_own_module() -> None:
    """Native cost: no hook and no state on the attention of a llama whose frequencies are static."""
    for name in registry.names():
        cls = registry.method_class(name)
        if not (issubclass(cls, Rotary) and cls.spectral) or not cells.fits("llama", name):
            continue
        model = cells.patched("llama", name)
        static = not getattr(registry.build(name, **dict(cells.stack("llama", name)[-1][1])), "dynamic", False)
        hooks = list(model.model.layers[0].self_attn._forward_pre_hooks.values()).count(carry)
        assert hooks == (0 if static and name not in _BY_LAYER else 1), name


_BY_LAYER = ("rnope",)  # acts on some layers only, so not in the module that all share
