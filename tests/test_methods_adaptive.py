"""Methods whose logits depend on content: each against its oracle, forward and backward, through every path that computes it.

Everything is found through the registry; a method without an oracle fails here.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pospatch.attention import blockwise as blockwise_module
from pospatch.attention._parts import split
from pospatch.engine import _contextual
from pospatch.engine._cache import pack_state, unpack_state
from pospatch.engine._state import Call, State
from pospatch.errors import BadOption, UnsupportedHost
from pospatch.geometry import Geometry
from pospatch.methods._base import Contextual, Method, SummedBias, SummedRotation
from pospatch.registry import build, method_class, names

_CLASSES = {name: method_class(name) for name in names()}
ADAPTIVE = [n for n, cls in _CLASSES.items() if issubclass(cls, Contextual) and cls.family == "adaptive"]
SUMMED = [n for n in ADAPTIVE if issubclass(_CLASSES[n], SummedBias)]
TURNING = [n for n in ADAPTIVE if issubclass(_CLASSES[n], SummedRotation)]
BLOCKS = [n for n in ADAPTIVE if n not in SUMMED + TURNING]

GEOMETRIES = {
    "odd heads": Geometry(heads=3, kv_heads=3, head_dim=8, width=24, length=32),
    "grouped": Geometry(heads=6, kv_heads=2, head_dim=10, width=30, length=32, scaling=0.7, layer=3, layers=4),
    "one key head": Geometry(heads=5, kv_heads=1, head_dim=6, width=20, length=32),
}
WIDE = Geometry(heads=4, kv_heads=2, head_dim=64, width=32, length=32)


def oracle(name: str) -> Any:
    return importlib.import_module(f"tests.oracles.{name}")


CASES = [
    pytest.param(name, item, id=f"{name}-{number}")
    for name in ADAPTIVE
    for number, item in enumerate(oracle(name).VARIANTS)
]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loud(method: Method, where: Geometry) -> dict[str, Tensor]:
    """Learned tensors away from their start, so that each one matters."""
    start = method.weights(where)
    return {name: value + 0.4 * random(*value.shape, seed=i) for i, (name, value) in enumerate(start.items())}


def inputs(where: Geometry, length: int, batch: int = 1) -> tuple[Tensor, ...]:
    """hidden, q, k, v."""
    return (
        random(batch, length, where.width, seed=11),
        random(batch, where.heads, length, where.head_dim, seed=12),
        random(batch, where.kv_heads, length, where.head_dim, seed=13),
        random(batch, where.kv_heads, length, where.head_dim, seed=14),
    )


def attended(
    method: Method,
    where: Geometry,
    weights: dict[str, Tensor],
    given: tuple[Tensor, ...],
    base: str = "sdpa",
    mask: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """The engine's attention of one call without a cache, (batch, query, heads, head_dim)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.models.llama.modeling_llama import eager_attention_forward

    hidden, q, k, v = given
    state = State(where, {"score": method})
    for name, value in weights.items():
        state.register_parameter(f"score__{name}", torch.nn.Parameter(value) if not value.requires_grad else None)
        state._parameters[f"score__{name}"] = value  # type: ignore[assignment]
    if positions is None:
        positions = torch.arange(q.shape[2])[None]
    call = Call(state=state, positions=positions, true=positions, hidden=hidden)
    module = SimpleNamespace(is_causal=True, num_key_value_groups=where.heads // where.kv_heads, training=False)
    if base == "eager" and mask is None:
        mask = torch.full((q.shape[2], q.shape[2]), torch.finfo(q.dtype).min, dtype=q.dtype).triu(1)[None, None]
    function = sdpa_attention_forward if base == "sdpa" else eager_attention_forward
    key, held = _contextual.key_state(q, k, call)
    kwargs = {"scaling": where.scaling, "dropout": 0.0}
    return _contextual.attend(module, q, key, v, mask, call, held, function, base, kwargs)[0]


def wanted(
    name: str, method: Method, where: Geometry, weights: dict[str, Tensor], given: tuple[Tensor, ...], row: int = 0
) -> Tensor:
    """Softmax of the oracle's logits over v, (query, heads, head_dim) float64."""
    hidden, q, k, v = (x[row] for x in given)
    logits = oracle(name).oracle(method, where, hidden, q, k, weights)
    value = v.double().repeat_interleave(where.heads // where.kv_heads, dim=0)
    return (logits.softmax(-1) @ value).transpose(0, 1)


# each equals its paper ------------------------------------------------------------------------------------------------


def test_every_method_has_an_oracle() -> None:
    assert not [name for name in ADAPTIVE if not hasattr(oracle(name), "oracle")]
    assert {"cope", "dape", "fox", "cable", "selective_rope"} <= set(ADAPTIVE)
    assert all((SUMMED, TURNING, BLOCKS))


@pytest.mark.parametrize("base", ["sdpa", "eager"])
@pytest.mark.parametrize("where", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_attention_equals_the_oracle(name: str, variant: dict[str, Any], where: Geometry, base: str) -> None:
    method = build(name, **variant)
    method.fits(where)
    weights, given = loud(method, where), inputs(where, 7)
    got = attended(method, where, weights, given, base)
    torch.testing.assert_close(got[0].double(), wanted(name, method, where, weights, given), rtol=0, atol=2e-5)


@pytest.mark.parametrize("small_blocks", [False, True], ids=["one block", "blocks"])
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_gradients_equal_the_oracle(
    name: str, variant: dict[str, Any], small_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of q, k, v, the hidden states and every declared weight, also where blocks are made again in the backward pass."""
    if small_blocks:
        _small(monkeypatch)
    where, method = GEOMETRIES["grouped"], build(name, **variant)
    weights, given = loud(method, where), inputs(where, 6)
    leaves = [*given, *weights.values()]
    for leaf in leaves:
        leaf.requires_grad_()
    upstream = random(6, where.heads, where.head_dim, seed=20)
    ours = torch.autograd.grad((attended(method, where, weights, given)[0] * upstream).sum(), leaves, allow_unused=True)
    theirs = torch.autograd.grad(
        (wanted(name, method, where, weights, given) * upstream).sum(), leaves, allow_unused=True
    )
    for label, got, want in zip(["hidden", "q", "k", "v", *weights], ours, theirs, strict=True):
        if want is None:
            assert got is None or not got.any(), label
            continue
        assert got is not None, f"no gradient reaches {label}"
        assert got.any(), f"no gradient reaches {label}"
        torch.testing.assert_close(
            got.double(), want.double(), rtol=1e-4, atol=2e-5, msg=lambda m, x=label: f"{x}: {m}"
        )


def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call in blocks, none by folding."""
    monkeypatch.setattr(blockwise_module, "BLOCK_SCORES", 60)
    monkeypatch.setattr(blockwise_module, "KEPT_SCORES", 1)
    monkeypatch.setattr(_contextual, "SPAN", -1.0)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_blocks_equal_the_whole(name: str, variant: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    where, method = WIDE, build(name, **variant)
    weights, given = loud(method, where), inputs(where, 45, batch=2)
    whole = attended(method, where, weights, given)
    _small(monkeypatch)
    assert (attended(method, where, weights, given) - whole).abs().max() < 2e-5


# what a query sees ----------------------------------------------------------------------------------------------------


def _bool_mask(length: int, hidden_tokens: list[int]) -> Tensor:
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    mask[:, hidden_tokens] = False
    return mask[None, None]


@pytest.mark.parametrize("base", ["sdpa", "eager"])
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_left_padding_adds_nothing(name: str, variant: dict[str, Any], base: str) -> None:
    where, method = WIDE, build(name, **variant)
    weights, given = loud(method, where), inputs(where, 12)
    alone = attended(method, where, weights, given, base)
    padded = tuple(torch.cat((5 * random(1, 4, where.width, seed=30), x), 1) for x in given[:1])
    padded += tuple(torch.cat((5 * random(1, x.shape[1], 4, x.shape[3], seed=31), x), 2) for x in given[1:])
    mask: Tensor = _bool_mask(16, [0, 1, 2, 3])
    if base == "eager":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    positions = torch.cat((torch.zeros(1, 4, dtype=torch.long), torch.arange(12)[None]), 1)
    got = attended(method, where, weights, padded, base, mask, positions)
    assert (got[:, 4:] - alone).abs().max() < 2e-5


@pytest.mark.parametrize("name", [*SUMMED, "cope"])
def test_a_hole_between_tokens_adds_nothing(name: str) -> None:
    """Pads in the middle, as after a shorter answer in a batch of conversations."""
    where, method = WIDE, build(name)
    weights, given = loud(method, where), inputs(where, 12)
    kept = [0, 1, 2, 6, 7, 8, 9, 10, 11]
    short = (given[0][:, kept], *(x[:, :, kept] for x in given[1:]))
    got = attended(method, where, weights, given, mask=_bool_mask(12, [3, 4, 5]))
    assert (got[:, kept] - attended(method, where, weights, short)).abs().max() < 3e-6


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_no_query_sees_later_tokens(name: str, variant: dict[str, Any]) -> None:
    where, method = WIDE, build(name, **variant)
    weights, given = loud(method, where), inputs(where, 14)
    changed = (given[0].clone(), *(x.clone() for x in given[1:]))
    changed[0][:, 9:] += 3
    for x in changed[1:]:
        x[:, :, 9:] += 3
    before, after = attended(method, where, weights, given), attended(method, where, weights, changed)
    assert (before - after)[:, :9].abs().max() < 1e-5
    assert (before - after)[:, 9:].abs().max() > 0.1


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_only_differences_of_positions_count(name: str, variant: dict[str, Any]) -> None:
    where, method = WIDE, build(name, **variant)
    weights, given = loud(method, where), inputs(where, 14)
    near, far = (
        attended(method, where, weights, given, positions=torch.arange(start, start + 14)[None]) for start in (0, 1000)
    )
    assert (near - far).abs().max() < 1e-6


# where they start -----------------------------------------------------------------------------------------------------

# what each is before any training, in terms of plain causal attention plus this bias for (heads, distances)
STARTS: dict[str, Any] = {
    "cope": lambda heads, r: torch.zeros(heads, *r.shape),
    "selective_rope": lambda heads, r: torch.zeros(heads, *r.shape),
    "fox": lambda heads, r: (-0.006715348 * r).expand(heads, *r.shape),
    "cable": lambda heads, r: (-0.693147181 * r).expand(heads, *r.shape),
    "dape": lambda heads, r: _kerple(r),
}


def _kerple(r: Tensor) -> Tensor:
    p, a = (0.01 + torch.nn.functional.softplus(x) for x in build("kerple_log").weights(WIDE).values())
    return -p[:, None, None] * torch.log1p(a[:, None, None] * r.clamp(min=0))


@pytest.mark.parametrize("name", ADAPTIVE)
def test_start_is_what_the_docstring_says(name: str) -> None:
    where, method = WIDE, build(name)
    given = inputs(where, 20)
    index = torch.arange(20)
    bias = STARTS[name](where.heads, (index[:, None] - index[None]).float())
    bias = bias.masked_fill((index[None] > index[:, None]), float("-inf"))
    k, v = (x.repeat_interleave(2, dim=1) for x in given[2:])
    plain = torch.nn.functional.scaled_dot_product_attention(given[1], k, v, attn_mask=bias[None])
    got = attended(method, where, method.weights(where), given)
    assert (got - plain.transpose(1, 2)).abs().max().item() < 3e-6


def test_a_start_without_any_forgetting() -> None:
    given = inputs(WIDE, 20)
    k, v = (x.repeat_interleave(2, dim=1) for x in given[2:])
    plain = torch.nn.functional.scaled_dot_product_attention(given[1], k, v, is_causal=True).transpose(1, 2)
    for name, start in (("fox", 100.0), ("cable", -100.0)):
        method = build(name, initial_bias=start)
        assert (attended(method, WIDE, method.weights(WIDE), given) - plain).abs().max() < 1e-6


@pytest.mark.parametrize("name", ADAPTIVE)
def test_starts_are_the_same_each_time_and_differ_by_layer(name: str) -> None:
    method = build(name)
    first, again, other = (method.weights(w) for w in (WIDE, WIDE, Geometry(**{**vars(WIDE), "layer": 5, "layers": 8})))
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = [key for key, value in first.items() if value.numel() > 1 and value.std() > 0 and key != "conv"]
    assert all(not torch.equal(first[key], other[key]) for key in drawn)


# long sequences -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_finite_and_right_at_131072_tokens(name: str, dtype: torch.dtype) -> None:
    """Two queries at the end of 131072 keys, as in a step of decoding, near keys and far ones loud."""
    length, where = 131072, Geometry(heads=2, kv_heads=1, head_dim=8, width=6, length=32)
    method = build(name, **({"bias": "alibi"} if name == "dape" else {}))
    weights = {key: value.to(dtype) for key, value in loud(method, where).items()}
    hidden, q, k, v = (x.to(dtype) for x in inputs(where, length))
    state = State(where, {"score": method})
    for key, value in weights.items():
        state.register_parameter(f"score__{key}", torch.nn.Parameter(value))
    held = state.state_of(hidden)
    key = k if held is None else pack_state(k, held)
    last = torch.arange(length - 2, length)[None]
    call = Call(state=state, positions=last, true=last, cache=object(), seen=length - 2)
    call.record = torch.arange(length)[None]
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    module = SimpleNamespace(is_causal=True, num_key_value_groups=2, training=False)
    mask = torch.ones(1, 1, 2, length, dtype=torch.bool)
    mask[..., 0, -1] = False
    split_key, held = _contextual.key_state(q[:, :, -2:], key, call)
    kwargs = {"scaling": where.scaling, "dropout": 0.0}
    with torch.no_grad():
        got = _contextual.attend(
            module, q[:, :, -2:], split_key, v, mask, call, held, sdpa_attention_forward, "sdpa", kwargs
        )[0]
    assert got.isfinite().all()
    logits = _last_logits(name, method, where, weights, hidden[0], q[0], k[0])
    plain = logits.softmax(-1) @ v[0].double()
    assert (got[0, -1].double() - plain).abs().max() < (2e-4 if dtype == torch.float32 else 2e-2)


def _last_logits(
    name: str, method: Any, where: Geometry, weights: dict[str, Tensor], hidden: Tensor, q: Tensor, k: Tensor
) -> Tensor:
    """Logits (heads, keys) of the last query in float64, by the same sums over whole tensors."""
    wide = {key: value.double() for key, value in weights.items()}
    q_last, scores = q[:, -1].double(), where.scaling * q[:, -1].double() @ k[0].double().T
    if name in SUMMED:
        own = oracle(name).oracle
        z = hidden.double() @ wide["weight"].T + wide["bias"]
        added = -torch.nn.functional.softplus(z if name == "cable" else -z).T
        assert own
        return scores + added.sum(-1, keepdim=True) - added.cumsum(-1)
    if name in TURNING:
        turn = oracle(name).angles(method, where, hidden[-40:], wide)  # beyond, see below
        full = _angles(method, where, hidden, wide)
        assert (full[-37:, 0] - turn[-37:, 0]).abs().max() < 1e-9
        total = full[:, 0].sum(0) - full[:, 0].cumsum(0)
        half = where.head_dim // 2
        a, b = q_last[:, None, :half], q_last[:, None, half:]
        turned = torch.cat((a * total.cos() - b * total.sin(), a * total.sin() + b * total.cos()), -1)
        return where.scaling * (turned * k[0].double()).sum(-1)
    if name == "cope":
        p = scores.sigmoid().flip(-1).cumsum(-1).flip(-1).clamp(max=method.max_position - 1)
        steps = q_last @ wide["table"].T
        low, high = steps.gather(1, p.floor().long()), steps.gather(1, p.ceil().long())
        return scores + low + (p - p.floor()) * (high - low)
    slopes = torch.tensor([2.0**-4, 2.0**-8], dtype=torch.double)[:, None]
    bias = -slopes * torch.arange(scores.shape[1] - 1, -1, -1)
    pairs = torch.nn.functional.leaky_relu(
        wide["first"][..., 0] @ torch.cat((scores, bias)) + wide["first_bias"][:, None]
    )
    return scores + bias + wide["last"][..., 0] @ pairs + wide["last_bias"][:, None]


def _angles(method: Any, where: Geometry, hidden: Tensor, wide: dict[str, Tensor]) -> Tensor:
    """The oracle's angles for a long sequence: the same sums, all tokens at once."""
    y = hidden.double().reshape(len(hidden), where.heads, -1)
    y = (y / torch.sqrt((y * y).sum(-1, keepdim=True) + 1e-6)).flatten(1)
    raw = y @ wide["down"].T @ wide["up"].T
    size = wide["conv"].shape[1]
    padded = torch.cat((torch.zeros(size - 1, raw.shape[1], dtype=torch.double), raw))
    phi = sum(wide["conv"][:, j] * padded[j : j + len(raw)] for j in range(size))
    half = where.head_dim // 2
    scale = torch.tensor(
        [method.max_angle * method.rope_theta ** (-2 * i / where.head_dim) for i in range(half)], dtype=torch.double
    )
    return (phi * scale)[:, None]  # one key head


@pytest.mark.parametrize("name", SUMMED)
def test_steep_fading_does_not_lose_the_near_keys(name: str) -> None:
    """At a nat and more a token, a sum from the start is larger than what float32 adds q.k to."""
    method, length = build(name, initial_bias=-20.0 if name == "fox" else 20.0), 1500
    where = Geometry(heads=2, kv_heads=1, head_dim=8, width=6, length=32)
    weights, given = method.weights(where), inputs(where, length)
    got = attended(method, where, weights, given)
    r = torch.arange(length)[:, None] - torch.arange(length)[None]
    logits = where.scaling * given[1][0].double() @ given[2][0].double().transpose(1, 2) - 20.0 * r
    logits = logits.masked_fill(r < 0, float("-inf"))
    plain = (logits.softmax(-1) @ given[3][0].double()).transpose(0, 1)
    assert (got[0].double() - plain).abs().max() < 1e-4


class _Largest(TorchDispatchMode):
    """The most numbers that any tensor made under it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else (out,):
            if isinstance(item, Tensor):
                self.size = max(self.size, item.numel())
        return out


@pytest.mark.parametrize(("name", "variant"), [*((n, {}) for n in ADAPTIVE), ("dape", {"kernel_size": 3})])
def test_no_tensor_grows_with_the_square_of_the_length(
    name: str, variant: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward; the whole matrix of logits would be 4 * 96 * 96 numbers, 4 times the bound."""
    monkeypatch.setattr(blockwise_module, "BLOCK_SCORES", 2**15)
    monkeypatch.setattr(blockwise_module, "KEPT_SCORES", 2**12)
    where, method = Geometry(heads=4, kv_heads=2, head_dim=8, width=16, length=32), build(name, **variant)
    weights, given = loud(method, where), inputs(where, 96)
    for leaf in (*weights.values(), *given):
        leaf.requires_grad_()
    with _Largest() as seen:
        attended(method, where, weights, given).square().sum().backward()
    # without a mask the flash kernel is one call: what it returns and keeps is linear too
    assert seen.size <= 4 * 96 * 96 // 4, seen.size


# the state beside the keys --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shared", [False, True])
def test_states_come_back_from_the_cache_as_float32(dtype: torch.dtype, shared: bool) -> None:
    key, heads = random(2, 3, 5, 8).to(dtype), 3 if shared else 6
    state = random(2, heads, 5, 4, seed=1) * torch.tensor([1e-4, 1e-2, 1.0, 1e3])
    packed = pack_state(key, state)
    assert packed.dtype == dtype
    same, back = unpack_state(packed, 8, heads)
    assert torch.equal(same, key)
    # float16 ends at 6e-8; the others hold all 24 digits
    assert (back - state).abs().max() <= 0 if dtype != torch.float16 else (back - state).abs().max() < 1e-3
    if dtype == torch.float16:
        assert ((back - state).abs() <= 6e-8 + 2e-7 * state.abs()).all()
    assert unpack_state(key, 8, heads)[1] is None


def test_the_gradient_of_the_parts_is_that_of_their_sum() -> None:
    x = random(7).requires_grad_()
    factor = torch.arange(1.0, 8.0)
    (split(x, torch.bfloat16).float().sum(-1) * factor).sum().backward()
    torch.testing.assert_close(x.grad, factor)


# refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADAPTIVE)
def test_two_sided_attention_is_refused_where_the_paper_has_no_form(name: str) -> None:
    assert _CLASSES[name].causal_only
    with pytest.raises(UnsupportedHost, match="two-sided"):
        build(name).fits(Geometry(**{**vars(WIDE), "causal": False}))


@pytest.mark.parametrize(
    ("name", "wrong", "words"),
    [
        ("cope", {"max_position": 1}, ["max_position", "1"]),
        ("cope", {"max_position": 2.5}, ["max_position", "2.5"]),
        ("dape", {"kernel_size": 2}, ["kernel_size", "odd"]),
        ("dape", {"bias": "rope"}, ["bias", "rope", "alibi"]),
        ("dape", {"bias": "alibbi"}, ["bias", "alibbi"]),
        ("dape", {"bias": 3}, ["bias", "string"]),
        ("dape", {"hidden": 0}, ["hidden", "0"]),
        ("fox", {"initial_bias": float("nan")}, ["initial_bias", "nan"]),
        ("cable", {"initial_bias": "0"}, ["initial_bias"]),
        ("selective_rope", {"conv_size": 0}, ["conv_size"]),
        ("selective_rope", {"max_angle": 0.0}, ["max_angle"]),
        ("selective_rope", {"gate": 1}, ["gate"]),
    ],
)
def test_bad_options_name_what_was_got(name: str, wrong: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(BadOption) as raised:
        build(name, **wrong)
    assert all(word in str(raised.value) for word in words)


def test_what_a_layer_cannot_have() -> None:
    windowed = Geometry(**{**vars(WIDE), "window": 8})
    build("selective_rope").fits(windowed)
    assert build("selective_rope").weights(windowed)["conv"].shape[1] == 1
    assert build("selective_rope").weights(WIDE)["conv"].shape[1] == 4
    with pytest.raises(UnsupportedHost, match=r"conv_size=4.*window of 8"):
        build("selective_rope", conv_size=4).fits(windowed)
    with pytest.raises(BadOption, match="head_dim=7"):
        build("selective_rope").fits(Geometry(heads=2, head_dim=7, width=14, length=8))
    with pytest.raises(UnsupportedHost, match="width of 31"):
        build("selective_rope").fits(Geometry(heads=2, head_dim=8, width=31, length=8))


@pytest.mark.parametrize("name", ADAPTIVE)
def test_docstrings_and_tables_are_complete(name: str) -> None:
    cls = _CLASSES[name]
    text = inspect.getdoc(cls) or ""
    assert re.search(r"\d{4}\.\d{5}", cls.source)
    assert all(part in text for part in ("Source:", "Args:", "Departs:", "Raises:"))
    for item in fields(cls):
        if item.name != "layers":
            assert f"{item.name}:" in text, f"{name}: {item.name} is not described"


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_options_survive_a_record(name: str, variant: dict[str, Any]) -> None:
    method = build(name, **variant)
    assert build(name, **json.loads(json.dumps(method.options()))) == method
