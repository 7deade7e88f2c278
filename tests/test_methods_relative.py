"""The relative methods against their oracles, METHODS.md's values, transformers' own code, and what each kind promises."""

from __future__ import annotations

import importlib
import math
import re
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from pospatch.attention._mask import looks_back
from pospatch.attention.fold import folded
from pospatch.errors import BadOption, UnsupportedHost
from pospatch.geometry import Geometry
from pospatch.methods._base import Bias, Block, Contextual, Fold, Method
from pospatch.methods._distance import by_distance, by_offset, distances
from pospatch.registry import build, method_class, names

_CLASSES = {name: method_class(name) for name in names()}
BIAS = [name for name, cls in _CLASSES.items() if issubclass(cls, Bias)]
FOLD = [name for name in BIAS if issubclass(_CLASSES[name], Fold)]
CONTENT = [name for name, cls in _CLASSES.items() if issubclass(cls, Contextual) and cls.family == "relative"]
MINE = [*BIAS, *CONTENT]
ABSOLUTE = {"fire"}  # its normaliser is the query's own position


def geometry(**changes: Any) -> Geometry:
    base = {"heads": 4, "kv_heads": 2, "head_dim": 64, "width": 256, "length": 64, "layer": 2, "layers": 8}
    return Geometry(**{**base, "grid": (4, 5), "prefix": 1, **changes})


GEOMETRIES = {
    "odd heads": geometry(heads=3, kv_heads=3),
    "grouped": geometry(heads=6, kv_heads=2, head_dim=80),
    "one key head": geometry(heads=5, kv_heads=1, head_dim=128),
    "wide": geometry(heads=2, kv_heads=2, head_dim=256),
    "twelve": geometry(heads=12, kv_heads=4),
}
POSITIONS = {
    "all": (list(range(13)), list(range(13))),
    "one step": ([40], list(range(41))),
    "irregular": ([0, 3, 9, 40, 300, 5000], [7, 0, 1, 2, 8, 40, 129, 299, 4999]),
}


def oracle(name: str) -> Any:
    return importlib.import_module(f"tests.oracles.{name}")


def cases(group: list[str], attribute: str = "VARIANTS") -> list[Any]:
    return [
        pytest.param(name, item, id=f"{name}-{number}")
        for name in group
        for number, item in enumerate(getattr(oracle(name), attribute, []))
    ]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loud(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Learned tensors away from their start, so that each one matters."""
    return {name: value + 0.3 * random(*value.shape, seed=5) for name, value in weights.items()}


def positions(*values: list[int]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([row]) for row in values)


def logits(
    method: Contextual, where: Geometry, weights: dict[str, Tensor], q: Tensor, k: Tensor, *at: Tensor
) -> Tensor:
    key = k.repeat_interleave(where.heads // where.kv_heads, dim=0)
    block = Block(
        query=q[None],
        key=key[None],
        scores=where.scaling * (q.float() @ key.float().transpose(1, 2))[None],
        query_positions=at[0],
        key_positions=at[1],
        allowed=torch.ones(1, 1, q.shape[1], k.shape[1], dtype=torch.bool),
    )
    return method.logits(block, weights, where)[0]


def offsets(name: str, where: Geometry, weights: dict[str, Tensor], *at: Tensor, **options: Any) -> Tensor:
    """What the method adds to the logits of fixed q and k, (heads, query, key)."""
    method = build(name, **options)
    if isinstance(method, Bias):
        return method.bias(*at, weights, where)[0]
    assert isinstance(method, Contextual)
    q = random(where.heads, 1, where.head_dim).expand(-1, at[0].shape[1], -1)
    k = random(where.kv_heads, 1, where.head_dim, seed=1).expand(-1, at[1].shape[1], -1)
    key = k.repeat_interleave(where.heads // where.kv_heads, dim=0)
    return logits(method, where, weights, q, k, *at) - where.scaling * q @ key.transpose(1, 2)


# each equals its paper ------------------------------------------------------------------------------------------------


def test_every_method_has_an_oracle() -> None:
    assert not [name for name in MINE if not hasattr(oracle(name), "oracle")]
    assert len(BIAS) >= 7
    assert len(CONTENT) >= 1


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
@pytest.mark.parametrize("where", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize(("name", "variant"), cases(BIAS))
def test_bias_equals_the_oracle(name: str, variant: dict[str, Any], where: Geometry, causal: bool) -> None:
    method, where = build(name, **variant), where.with_(causal=causal)
    if method.causal_only and not causal:
        with pytest.raises(UnsupportedHost, match="causal"):
            method.fits(where)
        return
    method.fits(where)
    weights = loud(method.weights(where))
    for queries, keys in POSITIONS.values():
        got = method.bias(*positions(queries, keys), weights, where)
        wanted = oracle(name).oracle(method, where, weights, queries, keys)
        assert got.shape == (1, where.heads, len(queries), len(keys))
        assert got.dtype == torch.float32
        tolerance = getattr(oracle(name), "TOLERANCE", 1e-4) if max(queries) > 1000 else 1e-4
        torch.testing.assert_close(got[0].double(), wanted, rtol=2e-5, atol=tolerance)


@pytest.mark.parametrize("where", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize(("name", "variant"), cases(CONTENT))
def test_logits_equal_the_oracle(name: str, variant: dict[str, Any], where: Geometry) -> None:
    method = build(name, **variant)
    method.fits(where)
    weights = loud(method.weights(where))
    for queries, keys in POSITIONS.values():
        q, k = random(where.heads, len(queries), where.head_dim), random(where.kv_heads, len(keys), where.head_dim)
        got = logits(method, where, weights, q, k, *positions(queries, keys))
        wanted = oracle(name).oracle(method, where, weights, q, k, queries, keys)
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", MINE)
def test_rows_of_a_batch_have_their_own_positions(name: str) -> None:
    where = geometry()
    weights = loud(build(name).weights(where))
    queries, keys = torch.tensor([[3, 4, 5], [0, 0, 1]]), torch.tensor([[2, 3, 4, 5], [0, 0, 0, 1]])
    if not isinstance(method := build(name), Bias):
        q, k = random(2, 4, 3, 64), random(2, 4, 4, 64, seed=1)
        block = Block(q, k, torch.zeros(2, 4, 3, 4), queries, keys, torch.ones(2, 1, 3, 4, dtype=torch.bool))
        got = method.logits(block, weights, where)
        for row in range(2):
            alone = [x[row : row + 1] for x in (q, k, torch.zeros(2, 4, 3, 4), queries, keys, block.allowed)]
            torch.testing.assert_close(method.logits(Block(*alone), weights, where), got[row : row + 1])
        return
    got = method.bias(queries, keys, weights, where)
    for row in range(2):
        alone = method.bias(queries[row : row + 1], keys[row : row + 1], weights, where)
        torch.testing.assert_close(alone, got[row : row + 1])


def test_a_function_of_the_distance_is_the_same_copied_and_looked_up() -> None:
    table = random(400, 3)
    for queries, keys in (((5, 20), (0, 20)), ((0, 7), (0, 7)), ((40, 41), (0, 41)), ((0, 3), (10, 30))):
        q, k = torch.arange(*queries)[None], torch.arange(*keys)[None]
        wanted = by_offset(distances(q, k), lambda r: table[r + 200])
        assert torch.equal(by_distance(q, k, lambda r: table[r + 200]), wanted)
        irregular = by_distance(q.expand(2, -1), k + torch.tensor([[0], [1]]), lambda r: table[r + 200])
        assert torch.equal(irregular[:1], wanted)
        assert not torch.equal(irregular[1:], wanted)


# METHODS.md's values, to their printed digits, and transformers' own code ---------------------------------------------------


def _printed(got: float, printed: str) -> None:
    digits = len(printed.partition(".")[2])
    assert abs(got - float(printed)) <= max(0.51 * 10.0**-digits, 2.4e-7 * abs(float(printed))), (
        f"{got} is not {printed}"
    )


@pytest.mark.parametrize(("heads", "printed"), oracle("alibi").REFERENCE)
def test_printed_slopes(heads: int, printed: str) -> None:
    where = geometry(heads=heads, kv_heads=heads)
    for got in (build("alibi").slopes(where).tolist(), oracle("alibi").slope_list(heads)):
        assert len(got) == heads
        for value, text in zip(got, printed.split(), strict=True):
            if text != "-":
                _printed(value, text)


@pytest.mark.parametrize("heads", [1, 2, 4, 6, 8, 12, 16, 20])
def test_slopes_are_those_of_bloom_and_mpt(heads: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    got = build("alibi").slopes(geometry(heads=heads, kv_heads=heads))
    bloom = build_alibi_tensor(torch.ones(1, 4, dtype=torch.long), heads, torch.float32)
    mpt = build_mpt_alibi_tensor(heads, 4)
    torch.testing.assert_close(got, bloom[:, 0, 1], rtol=1e-6, atol=0)
    torch.testing.assert_close(got, -mpt[:, 0, 2], rtol=1e-6, atol=0)


@pytest.mark.parametrize(("causal", "table"), oracle("t5_bias").REFERENCE)
def test_printed_buckets(causal: bool, table: dict[int, int]) -> None:
    method = build("t5_bias")
    got = method.buckets(torch.tensor(list(table)), two_sided=not causal)
    assert got.tolist() == list(table.values())
    assert [oracle("t5_bias").bucket(method, causal, r) for r in table] == list(table.values())


@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (16, 24), (8, 64), (64, 1000)])
def test_buckets_are_those_of_t5(buckets: int, farthest: int, default: torch.dtype) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    method, r = build("t5_bias", num_buckets=buckets, max_distance=farthest), torch.arange(-300, 301)
    native = {sided: T5Attention._relative_position_bucket(-r, sided, buckets, farthest) for sided in (True, False)}
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            for sided, wanted in native.items():
                assert torch.equal(method.buckets(r, two_sided=sided), wanted)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(("options", "pair", "printed"), oracle("fire").REFERENCE)
def test_printed_shares(options: dict[str, Any], pair: tuple[int, int], printed: str) -> None:
    m, r = pair
    got = build("fire", **options).shares(*positions([m], [m - r]), torch.tensor([0.1]), torch.ones(1))
    assert abs(float(got) - float(printed)) < 1e-6  # printed without the epsilon of 1e-6
    _printed(oracle("fire").share(r, m, 0.1, 512.0, epsilon=0.0), printed)


@pytest.mark.parametrize(("dim", "r", "printed"), oracle("sandwich").REFERENCE)
def test_printed_sums(dim: int, r: int, printed: str) -> None:
    _printed(float(build("sandwich", dim=dim).total(torch.tensor([r]))), printed)
    _printed(oracle("sandwich").total(dim, r), printed)


# columns ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("where", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize(("name", "variant"), cases(FOLD))
def test_columns_are_the_bias_at_any_position(
    name: str, variant: dict[str, Any], where: Geometry, dtype: torch.dtype
) -> None:
    """q and k of zeros leave the columns alone: their product is the bias, up to a constant of the row, in every dtype."""
    method = build(name, **variant)
    assert method.folds(where, dtype)
    far = [0, 1, 255, 256, 257, 32767, 65535, 65536, 65537, 65793, 131071, 131072, 2**20 - 1, 2**20, 2**24 - 1]
    for base in (0, 10**9):
        (at,) = positions([base + n for n in far])
        q, k = (torch.zeros(1, heads, 15, where.head_dim, dtype=dtype) for heads in (where.heads, where.kv_heads))
        weights = method.weights(where)
        wide, deep, v = folded(q, k, k, method.columns(at, at, weights, where), where.scaling)
        assert wide.shape[-1] == deep.shape[-1] == v.shape[-1]
        assert wide.shape[-1] % 8 == 0
        assert wide.isfinite().all()
        assert deep.isfinite().all()
        deep = deep.repeat_interleave(where.heads // where.kv_heads, dim=1)
        got = where.scaling * wide.double() @ deep.double().transpose(2, 3)
        wanted = oracle(name).oracle(method, where, weights, at[0].tolist(), at[0].tolist())
        got, wanted = (x - x.diagonal(dim1=-2, dim2=-1)[..., None] for x in (got[0], wanted))
        past = torch.ones(15, 15, dtype=torch.bool).tril()
        precise = {torch.float32: 1e-6, torch.bfloat16: 2e-5, torch.float16: 2e-6}[dtype]
        torch.testing.assert_close(got * past, wanted * past, rtol=precise, atol=precise)


def test_keys_of_the_columns_are_exact_in_half_precision() -> None:
    far = torch.tensor([[*range(0, 2**20, 997), 65791, 65793, 2**20 + 1, 2**24 - 1]])
    for method in (build(name) for name in FOLD):
        assert isinstance(method, Fold)
        k = method.columns(far, far, method.weights(geometry()), geometry())[1]
        for dtype in (torch.bfloat16, torch.float16):
            assert torch.equal(k.to(dtype).float(), k)


def test_what_sees_ahead_is_noticed() -> None:
    up, again = torch.arange(6)[None], torch.tensor([[0, 1, 2, 0, 1, 2]])
    triangle = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    floats = torch.zeros(1, 1, 6, 6).masked_fill(~triangle, torch.finfo(torch.float32).min)
    assert looks_back(None, True, up, up)
    assert not looks_back(None, False, up, up)
    assert not looks_back(None, True, again, again)
    assert looks_back(triangle, False, up, up)
    assert looks_back(floats, False, up, up)
    prefix = triangle.clone()
    prefix[..., :3, :3] = True
    assert not looks_back(prefix, False, up, up)
    assert not looks_back(torch.where(prefix, 0.0, -math.inf), False, up, up)
    assert not looks_back(triangle, False, again, again)
    packed = triangle.clone()
    packed[..., 3:, :3] = False
    assert looks_back(packed, False, again, again)


# properties of the kinds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
@pytest.mark.parametrize("name", MINE)
def test_only_differences_count(name: str, causal: bool) -> None:
    where = geometry(causal=causal)
    weights = loud(build(name).weights(where))
    near, far = ([positions([x + s for x in row])[0] for row in ([5, 6, 9, 700], [0, 3, 5, 6, 9])] for s in (0, 1000))
    same = torch.equal(offsets(name, where, weights, *near), offsets(name, where, weights, *far))
    assert same == (name not in ABSOLUTE)


def test_grids_count_differences_of_rows_and_columns() -> None:
    where, options = geometry(grid=(40, 5)), {"axes": 2, "hidden": 8}
    weights = loud(build("log_cpb", **options).weights(where))
    at = torch.arange(1, 21)[None]
    near, far = (offsets("log_cpb", where, weights, at + s, at + s, **options) for s in (0, 50))
    assert torch.equal(near, far)
    assert torch.equal(near[:, 0, 1], near[:, 5, 6])  # one column to the right, in the first row and in the second
    assert not torch.allclose(
        near[:, 4, 5], near[:, 0, 1]
    )  # the end of a row and the start of the next are no neighbours
    with_class = offsets("log_cpb", where, weights, at - 1, at - 1, **options)
    assert with_class[:, 0].abs().max() == with_class[:, :, 0].abs().max() == 0


@pytest.mark.parametrize("name", [n for n in MINE if not _CLASSES[n].causal_only])
def test_two_sided_attention_sees_both_sides(name: str) -> None:
    """Even in the distance, or with weights of its own for what comes after."""
    where = geometry(causal=False)
    weights = loud(build(name).weights(where))
    past, future = (offsets(name, where, weights, *positions(q, k))[:, 0, 0] for q, k in (([9], [4]), ([4], [9])))
    even = torch.equal(past, future)
    assert even == (name in {"alibi", "kerple_log", "kerple_power", "sandwich"})
    if even:
        return
    learned = {n: v.clone().requires_grad_() for n, v in weights.items()}
    past_side, future_side = (
        torch.autograd.grad(offsets(name, where, learned, *positions(*pair)).sum(), list(learned.values()))
        for pair in (([9], [4]), ([4], [9]))
    )
    assert any(not torch.equal(a, b) for a, b in zip(past_side, future_side, strict=True))


@pytest.mark.parametrize("name", MINE)
def test_starts(name: str) -> None:
    """A start at zero is the identity over `nope`; ALiBi and Sandwich have no parameters and KERPLE's are positive."""
    where = geometry()
    (at,) = positions(list(range(20)))
    zero = bool(offsets(name, where, build(name).weights(where), at, at).abs().max() < 1e-6)
    assert zero == (name not in {"alibi", "kerple_log", "kerple_power", "sandwich"})
    if "zero_init" in {f.name for f in fields(_CLASSES[name])}:
        weights = build(name, zero_init=False).weights(where)
        assert offsets(name, where, weights, at, at, zero_init=False).std() > 0.01
        other = build(name, zero_init=False).weights(where.with_(layer=3))
        assert not any(torch.equal(weights[key], other[key]) for key in ("weight", "out"))


@pytest.mark.parametrize("name", [n for n in MINE if build(n).weights(geometry())])
def test_gradients_reach_every_weight(name: str) -> None:
    for options in oracle(name).VARIANTS:
        where = geometry()
        weights = {n: v.requires_grad_() for n, v in loud(build(name, **options).weights(where)).items()}
        (at,) = positions([*range(12), 700])
        offsets(name, where, weights, at, at, **options).square().sum().backward()
        for weight, value in weights.items():
            assert value.grad is not None, weight
            assert value.grad.isfinite().all(), weight
            assert value.grad.abs().max() > 0, weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MINE)
def test_finite_at_131072_tokens(name: str, dtype: torch.dtype) -> None:
    where = geometry(length=4096)
    weights = {n: v.to(dtype).requires_grad_() for n, v in loud(build(name).weights(where)).items()}
    queries, keys = positions([131071], [0, 1, 4095, 65536, 131070, 131071])
    got = offsets(name, where, weights, queries, keys)
    assert got.isfinite().all()
    assert got.to(dtype).isfinite().all()
    assert got.abs().max() > 0
    if weights:
        for gradient in torch.autograd.grad(got.sum(), list(weights.values()), allow_unused=True):
            assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize("name", [n for n in BIAS if "parametrization" in {f.name for f in fields(_CLASSES[n])}])
def test_clamped_parameters_are_the_authors(name: str) -> None:
    """Values below the bound count as the bound and still learn; both parametrizations start at the same kernel."""
    where = geometry()
    (at,) = positions(list(range(20)))
    clamp, soft = (build(name, parametrization=kind) for kind in ("clamp", "softplus"))
    start = clamp.weights(where)
    assert all((value >= 0).all() for value in start.values())
    assert start["p"].max() <= 2
    assert start["a"].max() <= 1
    same = offsets(name, where, soft.weights(where), at, at)
    torch.testing.assert_close(same, offsets(name, where, start, at, at, parametrization="clamp"), rtol=1e-4, atol=1e-3)
    low = {n: torch.full_like(v, -1.0).requires_grad_() for n, v in start.items()}
    got = offsets(name, where, low, at, at, parametrization="clamp")
    bound = {n: torch.full_like(v, 0.01) for n, v in start.items()}
    assert torch.equal(got, offsets(name, where, bound, at, at, parametrization="clamp"))
    got.sum().backward()
    assert all(value.grad is not None and value.grad.abs().min() > 0 for value in low.values())


# refusals ---------------------------------------------------------------------------------------------------------------

_WRONG = [math.nan, math.inf, 0, -4, 1e308, "4", True, [4], 10**12]


@pytest.mark.parametrize("name", MINE)
def test_bad_values_raise_and_name_the_option(name: str) -> None:
    for item in fields(_CLASSES[name]):
        kind = item.metadata.get("kind")
        for value in (
            _WRONG if kind in ("number", "integer") else ["no such word", 3] if kind in ("choice", "flag") else []
        ):
            if kind == "integer" and value == 0 and item.metadata["low"] == 0 and not isinstance(value, bool):
                continue
            if kind == "number" and value == 10**12:
                continue
            with pytest.raises(BadOption, match=re.escape(item.name)) as raised:
                build(name, **{item.name: value})
            assert repr(value) in str(raised.value)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("alibi", {"biased_heads": 5}),
        ("t5_bias", {"num_buckets": 7}),
        ("t5_bias", {"num_buckets": 64, "max_distance": 32}),
        ("sandwich", {"dim": 63}),
    ],
)
def test_options_that_contradict_raise(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(BadOption, match=next(iter(wrong))):
        build(name, **wrong).fits(geometry())


def test_two_axes_need_a_grid() -> None:
    with pytest.raises(UnsupportedHost, match="grid"):
        build("log_cpb", axes=2).fits(geometry(grid=None))


@pytest.mark.parametrize("name", MINE)
def test_options_survive_a_record(name: str) -> None:
    for options in oracle(name).VARIANTS:
        method: Method = build(name, **options)
        assert build(name, **method.options()) == method
