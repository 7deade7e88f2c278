"""What content-dependent state does in caches, generation, training and checkpoints, on tiny models of several wirings."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM, StaticCache
from transformers.cache_utils import QuantizedLayer

import pospatch
from pospatch.engine._cache import unpack_state
from pospatch.errors import UnsupportedHost
from pospatch.methods._base import Contextual, SummedRotation
from pospatch.registry import method_class, names
from tests import tiny

ADAPTIVE = [n for n in names() if issubclass(method_class(n), Contextual) and method_class(n).family == "adaptive"]
WITH_STATE = [n for n in ADAPTIVE if method_class(n).state is not Contextual.state]
HOSTS = [
    "llama",
    "gpt2",
    "gemma2",
    "gpt_oss",
    "mistral",
]  # grouped heads; no rotary; softcap; sinks; a window everywhere
VARIANTS = [(name, {}) for name in ADAPTIVE] + [("dape", {"kernel_size": 3}), ("selective_rope", {"gate": True})]
IDS = [name + "".join(f"-{key}" for key in options) for name, options in VARIANTS]


def ours(model: Any) -> dict[str, Tensor]:
    return {name: value for name, value in model.named_parameters() if ".pospatch." in name}


def patched(host: str, name: str, options: dict[str, Any] | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """A tiny model with the method and learned tensors away from their start."""
    model = pospatch.apply(tiny.build(host).to(dtype), name, **(options or {}))
    with torch.no_grad():
        for index, value in enumerate(ours(model).values()):
            drawn = torch.randn(value.shape, generator=torch.Generator().manual_seed(index))
            value.add_(0.3 * drawn.to(value.dtype))
    return model


def gap(x: Tensor, y: Tensor) -> float:
    return (x.float() - y.float()).abs().max().item() / y.float().std().item()


def stepwise(model: Any, tokens: Tensor, sizes: list[int], cache: Any = None, **kwargs: Any) -> Tensor:
    parts, start = [], 0
    cache = DynamicCache(config=model.config) if cache is None else cache
    mask = kwargs.get("attention_mask")
    for size in sizes:
        rows = slice(start, start + size)
        given = {"attention_mask": mask[:, : start + size]} if mask is not None else {}
        if "position_ids" in kwargs:
            given["position_ids"] = kwargs["position_ids"][:, rows]
        parts.append(model(tokens[:, rows], past_key_values=cache, use_cache=True, **given).logits)
        start += size
    return torch.cat(parts, dim=1)


# caches ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
def test_steps_and_chunks_equal_one_pass(host: str, name: str, options: dict[str, Any]) -> None:
    model, tokens = patched(host, name, options), tiny.ids(2, 18)
    with torch.no_grad():
        whole = model(tokens).logits
        assert gap(stepwise(model, tokens, [7, 1, 1, 3, 6]), whole) < 2e-5
        if host == "llama":
            static = StaticCache(config=model.config, max_cache_len=24)
            assert gap(stepwise(model, tokens, [7, 1, 1, 3, 6], static), whole) < 2e-5


def other_attention(attention: str, name: str, options: dict[str, Any]) -> None:
    """A padded batch gives what it gives by the model's first attention."""
    model, tokens = patched("llama", name, options), tiny.ids(2, 17)
    pads = torch.ones(2, 17, dtype=torch.long)
    pads[0, :5] = 0
    positions = (pads.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        wanted = model(tokens, attention_mask=pads, position_ids=positions).logits
        model.set_attn_implementation(attention)
        got = model(tokens, attention_mask=pads, position_ids=positions).logits
    assert gap(got[0, 5:], wanted[0, 5:]) < 2e-5
    assert gap(got[1], wanted[1]) < 2e-5


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
def test_every_attention_gives_the_same(attention: str, name: str, options: dict[str, Any]) -> None:
    other_attention(attention, name, options)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
def test_compiled_flex_attention_gives_the_same(name: str, options: dict[str, Any]) -> None:
    other_attention("flex_attention", name, options)


@pytest.mark.parametrize("host", ["llama", "gemma2"])
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
def test_left_padding_is_invisible_also_with_a_cache(host: str, name: str, options: dict[str, Any]) -> None:
    model, tokens = patched(host, name, options), tiny.ids(2, 14)
    padded = torch.cat((tiny.ids(2, 4, seed=9), tokens), dim=1)
    mask = (torch.arange(18) >= 4).long().expand(2, -1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        alone = model(tokens).logits
        for sizes in ([18], [9, 1, 8]):
            got = stepwise(model, padded, sizes, attention_mask=mask, position_ids=positions)
            assert gap(got[:, 4:], alone) < 2e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", [n for n in ADAPTIVE if not issubclass(method_class(n), SummedRotation)])
@torch.no_grad()
def test_a_callers_own_mask_is_honoured(attention: str, name: str) -> None:
    """Booleans of four dimensions, for several texts at once, one of them padded."""
    model, tokens = patched("gpt2", name), tiny.ids(2, 12)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :5] = 0
    where = (mask.cumsum(1) - 1).clamp(min=0)
    wanted = tiny.logits(model, tokens, attention_mask=mask, position_ids=where)[mask.bool()]
    model.set_attn_implementation(attention)
    allowed = mask.bool()[:, None, None] & torch.ones(12, 12, dtype=torch.bool).tril()
    assert gap(tiny.logits(model, tokens, attention_mask=allowed, position_ids=where)[mask.bool()], wanted) < 2e-5


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_cropped_cache_goes_on_from_where_it_was_cut(name: str) -> None:
    model, tokens, other = patched("llama", name), tiny.ids(1, 12), tiny.ids(1, 5, seed=77)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        stepwise(model, tokens, [12], cache)
        cache.crop(-4)
        got = model(other, past_key_values=cache, use_cache=True).logits
        wanted = model(torch.cat((tokens[:, :8], other), dim=1)).logits[:, 8:]
    assert gap(got, wanted) < 2e-5


@pytest.mark.parametrize("name", ADAPTIVE)
def test_generation_with_a_cache_equals_without(name: str) -> None:
    """Greedy, beams that are reordered, and an assistant whose wrong tokens are cropped."""
    model, tokens = patched("llama", name), tiny.ids(1, 6)
    common = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for extra in ({}, {"num_beams": 3}):
        cached = model.generate(tokens, use_cache=True, **common, **extra)
        assert torch.equal(cached, model.generate(tokens, use_cache=False, **common, **extra))
    plain = model.generate(tokens, **common)
    assert torch.equal(model.generate(tokens, assistant_model=tiny.build("llama", seed=3), **common), plain)


@pytest.mark.parametrize("name", WITH_STATE)
def test_a_bfloat16_cache_holds_the_state_in_float32(name: str) -> None:
    model, tokens = patched("llama", name, dtype=torch.bfloat16), tiny.ids(1, 10)
    attention = model.model.layers[0].self_attn
    seen: list[Tensor] = []
    handle = attention.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(tokens, past_key_values=cache, use_cache=True)
        handle.remove()
        state = attention.pospatch
        exact = state.state_of(seen[0])
        keys = cache.layers[0].keys
        assert keys.dtype == torch.bfloat16
        heads = 2 if state.score.shared_state else 4
        held = unpack_state(keys, attention.head_dim, heads)[1]
    assert exact.dtype == torch.float32
    assert (exact - exact.bfloat16().float()).abs().max() > 1e-4  # what one bfloat16 would lose
    assert (held - exact).abs().max() < 1e-6


@pytest.mark.parametrize("name", ADAPTIVE)
def test_bfloat16_steps_stay_near_one_pass(name: str) -> None:
    model, tokens = patched("llama", name, dtype=torch.bfloat16), tiny.ids(1, 16)
    with torch.no_grad():
        assert gap(stepwise(model, tokens, [5, 1, 10]), model(tokens).logits) < 0.2


class _FewBits(QuantizedLayer):
    def _quantize(self, tensor: Tensor, axis: int) -> Tensor:
        raise AssertionError("the state was about to be quantized")

    def _dequantize(self, q_tensor: Tensor) -> Tensor:
        raise AssertionError("nothing is stored")


@pytest.mark.parametrize("name", WITH_STATE)
def test_a_quantized_cache_is_refused(name: str) -> None:
    model = patched("llama", name)
    cache = DynamicCache(config=model.config)
    cache.layers[0] = _FewBits()
    with pytest.raises(UnsupportedHost, match=rf"{name}.*quantized"):
        model(tiny.ids(1, 4), past_key_values=cache, use_cache=True)


# training -------------------------------------------------------------------------------------------------------------


def _gradients(model: Any, batches: list[Tensor], order: list[int] | None = None) -> dict[str, Tensor]:
    """Gradients after forwards of all batches, then their backwards."""
    model.zero_grad()
    losses = [model(tokens, labels=tokens, use_cache=False).loss for tokens in batches]
    for index in order or range(len(losses)):
        losses[index].backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
def test_gradients_reach_every_tensor_and_survive_checkpointing(name: str, options: dict[str, Any]) -> None:
    model = patched("llama", name, options).train()
    first, second = tiny.ids(2, 15), tiny.ids(1, 9, seed=8)
    plain = _gradients(model, [first, second])
    assert all(key in plain and plain[key].any() for key in ours(model))
    alone = [_gradients(model, [tokens]) for tokens in (first, second)]
    for key, value in plain.items():  # forward, forward, backward, backward
        torch.testing.assert_close(value, alone[0][key] + alone[1][key], rtol=1e-4, atol=1e-6)
    for reentrant in (True, False):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        again = _gradients(model, [first, second], [1, 0])
        for key, value in plain.items():
            torch.testing.assert_close(again[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", WITH_STATE)
def test_states_are_float32_under_autocast(name: str) -> None:
    model = patched("llama", name)
    state = model.model.layers[0].self_attn.pospatch
    hidden = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = state.state_of(hidden)
    assert torch.equal(inside, state.state_of(hidden))


# start, undo, copies, files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["llama", "gemma2", "gpt_oss"])
@pytest.mark.parametrize(
    ("name", "options", "base"),
    [
        ("cope", {}, "nope"),
        ("selective_rope", {}, "nope"),
        ("dape", {}, "kerple_log"),
        ("dape", {"kernel_size": 3, "bias": "alibi"}, "alibi"),
        ("fox", {"initial_bias": 100.0}, "nope"),
        ("cable", {"initial_bias": -100.0}, "nope"),
    ],
)
def test_grafts_start_as_the_model_without_them(host: str, name: str, options: dict[str, Any], base: str) -> None:
    """Not to the bit: another kernel adds the same numbers in another order; 1e-5 of the logits' spread."""
    tokens = tiny.ids(2, 18)
    with torch.no_grad():
        graft = pospatch.apply(tiny.build(host), name, **options)(tokens).logits
        plain = pospatch.apply(tiny.build(host), base)(tokens).logits
    assert gap(graft, plain) < 1e-5


@pytest.mark.parametrize("name", ADAPTIVE)
def test_copies_removal_and_files(name: str, tmp_path: Any) -> None:
    native, tokens = tiny.build("llama"), tiny.ids(2, 12)
    with torch.no_grad():
        before = native(tokens).logits
        model = patched("llama", name)
        wanted = model(tokens).logits
        assert not torch.equal(wanted, before)
        twin = copy.deepcopy(model)
        for value in ours(twin).values():
            value.add_(1.0)
        assert torch.equal(model(tokens).logits, wanted)
        assert not torch.equal(twin(tokens).logits, wanted)
        model.save_pretrained(tmp_path)
        loaded = pospatch.from_pretrained(LlamaForCausalLM, str(tmp_path))
        assert torch.equal(loaded(tokens).logits, wanted)
        pospatch.remove(model)
        assert torch.equal(model(tokens).logits, before)
    assert model.state_dict().keys() == native.state_dict().keys()


@pytest.mark.parametrize("name", ADAPTIVE)
def test_encoders_are_refused(name: str) -> None:
    for host in ("bert", "t5"):
        with pytest.raises(UnsupportedHost, match="two-sided"):
            pospatch.apply(tiny.build(host), name)


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
def test_one_graph_compiles(name: str, options: dict[str, Any]) -> None:
    model, tokens = patched("llama", name, options), tiny.ids(1, 12)
    with torch.no_grad():
        wanted = model(tokens, use_cache=False).logits
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        got = compiled(tokens, use_cache=False).logits
    torch._dynamo.reset()
    assert gap(got, wanted) < 2e-5
