"""Methods that rotate, re-index a rotation or scale q: each against its oracle, METHODS.md's values, and its kind's properties.

Everything is found through the registry; a method without an oracle fails here.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from dataclasses import MISSING, fields
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from pospatch.attention.bands import banded_logits
from pospatch.attention.blockwise import blockwise
from pospatch.errors import BadOption, UnsupportedHost
from pospatch.geometry import Geometry, Rotation
from pospatch.methods._base import Band, Bands, Block, Contextual, Method, Nothing, QueryScale, Rotary, Scaling
from pospatch.methods._math import rotary_inv_freq, turn
from pospatch.registry import build, method_class, names

_CLASSES = {name: method_class(name) for name in names()}


def _of(*kinds: type, spectral: bool | None = None, **attributes: Any) -> list[str]:
    found = [name for name, cls in _CLASSES.items() if issubclass(cls, kinds)]
    found = [name for name in found if all(getattr(_CLASSES[name], a) == v for a, v in attributes.items())]
    return [name for name in found if spectral is None or _CLASSES[name].spectral == spectral]


SPECTRAL = _of(Rotary, spectral=True)
OTHER_ROTARY = _of(Rotary, spectral=False)
FADING = _of(Contextual, family="rotary")  # a rotation that also fades, so that it is made with the logits
BANDS = _of(Bands)
QUERY = _of(QueryScale)
MINE = [*SPECTRAL, *OTHER_ROTARY, *FADING, *BANDS, *QUERY]
EVERY = [*MINE, *_of(Nothing)]


def geometry(*, head_dim: int = 64, dim: int = 0, theta: float = 1e4, scaled: bool = False, **changes: Any) -> Geometry:
    dim = dim or head_dim
    inv_freq = rotary_inv_freq(theta, dim)
    rotation = Rotation(dim=dim, theta=theta, inv_freq=inv_freq)
    if scaled:  # as if a Llama 3.1 scaling and an amplitude stood there natively
        inv_freq = torch.where(torch.arange(dim // 2) > dim // 4, inv_freq / 8, inv_freq)
        rotation = Rotation(dim=dim, theta=theta, inv_freq=inv_freq, attention_factor=1.1, rope_type="llama3")
    base = {"heads": 4, "kv_heads": 2, "width": 256, "length": 64, "layer": 2, "layers": 8, "grid": (4, 5), "prefix": 1}
    return Geometry(**{**base, **changes}, head_dim=head_dim, rotation=rotation)


GEOMETRIES = {
    "odd heads": geometry(heads=3, kv_heads=3),
    "grouped, partly rotated": geometry(head_dim=80, dim=20, heads=6, kv_heads=2, length=48, layer=3),
    "one key head": geometry(head_dim=128, heads=5, kv_heads=1, theta=5e5, length=32),
    "wide": geometry(head_dim=256, heads=2, kv_heads=2, theta=1e6, length=40, layer=7),
    "scaled natively": geometry(head_dim=96, heads=4, kv_heads=2, scaled=True),
}
LONG = geometry(length=131072)  # so long for its base that YaRN's ramp ends beyond the last pair


def oracle(name: str) -> Any:
    return importlib.import_module(f"tests.oracles.{name}")


def options(name: str, variant: dict[str, Any] | None = None) -> dict[str, Any]:
    """The variant with 4 for each option that is required."""
    required = [f.name for f in fields(_CLASSES[name]) if f.default is MISSING and f.default_factory is MISSING]
    return {**dict.fromkeys(required, 4.0), **(variant or {})}


def made(name: str, **changes: Any) -> Method:
    return build(name, **options(name, changes))


def cases(group: list[str], attribute: str = "VARIANTS") -> list[Any]:
    default: list[Any] = [{}] if attribute == "VARIANTS" else []
    return [
        pytest.param(name, item, id=f"{name}-{number}")
        for name in group
        for number, item in enumerate(getattr(oracle(name), attribute, default))
    ]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loud(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Learned tensors away from their start, so that each one matters."""
    return {name: value - 0.2 - 0.1 * random(*value.shape, seed=5).abs() for name, value in weights.items()}


def reindexed(
    method: Bands, where: Geometry, q: Tensor, k: Tensor, query_positions: Tensor, key_positions: Tensor
) -> Tensor:
    """Logits (heads, query, key) in float32 as the engine makes them."""
    inv_freq = where.rotation.inv_freq

    def rotate(x: Tensor, positions: Tensor) -> Tensor:
        return turn(x, positions[:, None, :, None].float() * inv_freq)

    key = k.repeat_interleave(q.shape[0] // k.shape[0], dim=0)
    bands = method.bands(where)
    logits = banded_logits(
        bands,
        q[None],
        key[None],
        [rotate(key[None], band.key(key_positions[None])) for band in bands],
        query_positions[None],
        key_positions[None],
        where.scaling,
        rotate,
        two_sided=not where.causal,
    )(slice(None), None)
    visible = method.visible(query_positions[None], key_positions[None], where)
    if visible is not None:
        logits = logits.masked_fill(~visible[:, None], -math.inf)
    if where.causal:
        logits = logits.masked_fill(key_positions[None, :] > query_positions[:, None], -math.inf)
    return logits[0]


def fading(
    method: Contextual, where: Geometry, q: Tensor, k: Tensor, query_positions: Tensor, key_positions: Tensor
) -> Tensor:
    key = k.repeat_interleave(q.shape[0] // k.shape[0], dim=0)
    allowed = (key_positions[None, :] <= query_positions[:, None])[None, None]
    block = Block(
        query=q[None],
        key=key[None],
        scores=torch.zeros(1, q.shape[0], q.shape[1], k.shape[1]),
        query_positions=query_positions[None],
        key_positions=key_positions[None],
        allowed=allowed,
    )
    return (method.logits(block, {}, where)).masked_fill(~allowed, -math.inf)[0]


# each equals its paper ------------------------------------------------------------------------------------------------


def test_every_method_has_an_oracle() -> None:
    missing = [name for name in MINE if not hasattr(oracle(name), "oracle")]
    assert not missing
    sizes = [len(group) for group in (SPECTRAL, OTHER_ROTARY, BANDS, QUERY, FADING)]
    assert all(size >= least for size, least in zip(sizes, (13, 8, 6, 2, 1), strict=True)), sizes


@pytest.mark.parametrize("where", [*GEOMETRIES.values(), LONG], ids=[*GEOMETRIES, "long"])
@pytest.mark.parametrize(("name", "variant"), cases(SPECTRAL))
def test_frequencies_equal_the_oracle(name: str, variant: dict[str, Any], where: Geometry) -> None:
    method = made(name, **variant)
    method.fits(where)
    for length in (None, where.length // 2, where.length, where.length + 1, 5 * where.length):
        wanted, wanted_amplitude = oracle(name).oracle(method, where, length)
        seen = None if length is None else torch.tensor([[length], [length]])
        inv_freq, amplitude = method.frequencies(where, seen)
        rows = inv_freq if inv_freq.dim() == 2 else inv_freq[None]
        for row in rows:
            torch.testing.assert_close(row.double(), torch.tensor(wanted, dtype=torch.double), rtol=2e-5, atol=1e-12)
        amplitudes = torch.as_tensor(amplitude, dtype=torch.double).flatten()
        torch.testing.assert_close(amplitudes, torch.full_like(amplitudes, wanted_amplitude), rtol=1e-6, atol=0)


@pytest.mark.parametrize("where", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize(("name", "variant"), cases(OTHER_ROTARY))
def test_rotation_equals_the_oracle(name: str, variant: dict[str, Any], where: Geometry) -> None:
    method = made(name, **variant)
    method.fits(where)
    weights = loud(method.weights(where))
    positions = torch.tensor([[0, 1, 4, 5, 6, 17, 63], [2, 3, 5, 8, 13, 21, 90]])
    for side, heads in (("query", where.heads), ("key", where.kv_heads), ("key", where.heads)):
        x = random(2, heads, 7, where.head_dim)
        got = method.rotate(x, positions, side, weights, where)
        wanted = oracle(name).oracle(method, where, x, positions, side, weights)
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
@pytest.mark.parametrize("where", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize(("name", "variant"), cases(BANDS))
def test_bands_equal_the_oracle(name: str, variant: dict[str, Any], where: Geometry, causal: bool) -> None:
    method, where = made(name, **variant), where.with_(causal=causal)
    if method.causal_only and not causal:
        with pytest.raises(UnsupportedHost, match="causal"):
            method.fits(where)
        return
    method.fits(where)
    queries = torch.tensor([0, 3, 7, 8, 11, 31, 64, 131])
    keys = torch.tensor([0, 1, 2, 4, 7, 8, 16, 30, 55, 60, 100, 123, 131])
    q, k = random(where.heads, 8, where.head_dim), random(where.kv_heads, 13, where.head_dim, seed=1)
    got = reindexed(method, where, q, k, queries, keys)
    wanted = oracle(name).oracle(method, where, where.rotation.inv_freq, q, k, queries, keys)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=3e-4)


@pytest.mark.parametrize("where", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize(("name", "variant"), cases(FADING))
def test_fading_rotation_equals_the_oracle(name: str, variant: dict[str, Any], where: Geometry) -> None:
    method = made(name, **variant)
    positions = torch.tensor([0, 1, 2, 50, 51, 700, 5000, 5100])
    q, k = random(where.heads, 8, where.head_dim), random(where.kv_heads, 8, where.head_dim, seed=1)
    got = fading(method, where, q, k, positions, positions)
    wanted = oracle(name).oracle(method, where, q, k, positions, positions)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("name", "variant"), cases(QUERY))
def test_query_factors_equal_the_oracle(name: str, variant: dict[str, Any]) -> None:
    positions = torch.tensor([[0, 1, 15, 16, 31, 32], [63, 64, 8190, 8191, 20000, 131071]])
    for where in GEOMETRIES.values():
        wanted = torch.tensor(oracle(name).oracle(made(name, **variant), where, positions))
        torch.testing.assert_close(made(name, **variant).factor_at(positions, where), wanted, rtol=1e-6, atol=0)


# METHODS.md's values, to their printed digits ---------------------------------------------------------------------------


def _printed(got: float, printed: str, where: str, slack: float = 2.4e-7) -> None:
    digits = len(printed.partition("e")[0].partition(".")[2])
    unit = 10.0 ** (int(printed.partition("e")[2] or 0) - digits)
    wanted = float(printed)
    # the values were printed from float32, whose own error shows in their last digits
    assert abs(got - wanted) <= max(0.51 * unit, slack * abs(wanted)), f"{where}: {got} is not {printed}"


def _relative(method: Bands, where: Geometry, m: int, n: int) -> float:
    held = [band for band in method.bands(where) if _holds(band, m, n)]
    assert len(held) == 1
    return float(held[0].query(torch.tensor([m])) - held[0].key(torch.tensor([n])))


def _holds(band: Band, m: int, n: int) -> bool:
    distance = m // band.unit - n // band.unit
    return distance >= band.start and (band.stop is None or distance < band.stop)


def _spectral_value(key: str, inv_freq: Any, amplitude: float, base: Any, factor: float) -> float:
    if key == "sum":
        return float(sum(inv_freq))
    if key == "amplitude":
        return amplitude
    kind, _, index = key.partition("_")
    ratio = [float(b) / float(w) if w else math.inf for w, b in zip(inv_freq, base, strict=True)]
    if kind == "low":
        return max(i for i, r in enumerate(ratio) if r < 1 + 1e-6)
    if kind == "high":
        return min(i for i, r in enumerate(ratio) if r > factor * (1 - 1e-6))
    value = float(inv_freq[int(index)]) if index else 0.0
    if kind == "theta":
        half = len(base)
        return float(inv_freq[half - 1]) ** (-half / (half - 1))
    return {"w": value, "lambda": 2 * math.pi / value if value else math.inf, "mask": 1 / ratio[int(index or 0)]}[kind]


@pytest.mark.parametrize(("name", "reference"), cases(SPECTRAL, "REFERENCE"))
def test_printed_spectra(name: str, reference: tuple[Any, ...]) -> None:
    shape, chosen, key, printed = reference
    method, where = made(name, **chosen), geometry(**shape)
    if found := re.match(r"bounds\((.*), (.*)\)", key):
        from tests.oracles._rotary import bounds

        got = bounds(float(found[1]), float(found[2]), where, where.length)
        assert " ".join(str(n) for n in got) == printed
        return
    key, _, length = key.partition("@")
    seen = torch.tensor([[int(length)]]) if length else None
    inv_freq, amplitude = method.frequencies(where, seen)
    base, factor = rotary_inv_freq(where.rotation.theta, where.rotation.dim), getattr(method, "factor", 1.0)
    exact = oracle(name).oracle(method, where, int(length) if length else None)
    for w, a, slack in (
        (inv_freq.reshape(-1, len(base))[0].double(), float(amplitude), 1e-7),
        (*exact, 5e-7),
    ):
        if key == "theta":
            assert _spectral_value("theta_", w, a, base, factor) == pytest.approx(float(printed), rel=1e-5)
            _printed(method.theta(where), printed, name)
        else:
            _printed(_spectral_value(key, w, a, base, factor), printed, f"{name} {key}", slack)


@pytest.mark.parametrize(("name", "reference"), cases(BANDS, "REFERENCE"))
def test_printed_relative_positions(name: str, reference: tuple[Any, ...]) -> None:
    shape, chosen, key, printed = reference
    method, where = made(name, **chosen), geometry(**shape)
    kind, *numbers = key.split()
    if kind == "amplitude":
        _printed(method.bands(where)[0].amplitude ** 0.5, printed, name)
        return
    m = int(numbers[0])
    keys = range(m + 1) if kind == "row" else [int(numbers[1])]
    wanted = [float(n) for n in printed.split()]
    assert [_relative(method, where, m, n) for n in keys] == wanted
    assert [oracle(name).relative(method, where, m, n) for n in keys] == wanted


@pytest.mark.parametrize(("name", "reference"), cases(QUERY, "REFERENCE"))
def test_printed_query_factors(name: str, reference: tuple[Any, ...]) -> None:
    shape, chosen, key, printed = reference
    method, where = made(name, **chosen), geometry(**shape)
    positions = torch.tensor([[int(key.split()[1])]])
    _printed(float(method.factor_at(positions, where)), printed, name)
    _printed(oracle(name).oracle(method, where, positions)[0][0], printed, name)


@pytest.mark.parametrize(("name", "reference"), cases([*OTHER_ROTARY, *FADING], "REFERENCE"))
def test_printed_parameters(name: str, reference: tuple[Any, ...]) -> None:
    shape, chosen, key, printed = reference
    method, where = made(name, **chosen), geometry(**shape)
    kind, index, power = re.match(r"(\w+)_(\d+)(?: \*\* (\d+))?$", key).groups()
    values = method.ratios(where) if kind == "ratio" else method.zeta(where.head_dim)
    _printed(float(values[int(index)]) ** int(power or 1), printed, name)


# as transformers computes it, bit for bit ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "variant"), cases(SPECTRAL))
def test_native_form_is_bit_equal(name: str, variant: dict[str, Any]) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding

    method = made(name, **variant)
    for where in [*GEOMETRIES.values(), LONG, geometry(dim=24, length=4096), geometry(head_dim=128, length=8192)]:
        native = method.rope_parameters(where)
        if native is None:
            continue
        config = LlamaConfig(
            head_dim=where.head_dim,
            num_attention_heads=where.heads,
            hidden_size=where.heads * where.head_dim,
            max_position_embeddings=where.length,
            rope_parameters=dict(native),
        )
        function = ROPE_INIT_FUNCTIONS.get(native["rope_type"], GPTNeoXRotaryEmbedding.compute_default_rope_parameters)
        for length in (None, where.length // 2, where.length + 1, 3 * where.length):
            seen = None if length is None else torch.tensor([[length]])
            inv_freq, amplitude = method.frequencies(where, seen)
            extra = {} if length is None else {"seq_len": torch.tensor(length)}
            wanted, wanted_amplitude = function(config, None, **extra)
            assert torch.equal(inv_freq.reshape(-1), wanted), f"{native['rope_type']} at length {length}"
            assert amplitude == wanted_amplitude


def test_native_forms_are_where_they_should_be() -> None:
    """Every fixed spectrum that transformers can say is said; what it cannot say is None."""
    where = geometry(length=4096)
    kinds = {name: (made(name).rope_parameters(where) or {}).get("rope_type") for name in SPECTRAL}
    same = {"rope": "default", "ntk": "default", "p_rope": "proportional", "dynamic_ntk": "dynamic"}
    for name, kind in kinds.items():
        assert kind in (same.get(name, name), "longrope", None), name
    assert {name for name, kind in kinds.items() if kind is None} == {"clipped_rope", "dynamic_yarn"}
    assert all(made(n).rope_parameters(GEOMETRIES["scaled natively"]) is None for n in _of(Scaling, spectral=True))


# properties of the kinds ------------------------------------------------------------------------------------------------


def _rotated_logits(method: Rotary, where: Geometry, positions: Tensor) -> Tensor:
    weights = loud(method.weights(where))
    q, k = random(1, where.heads, 9, where.head_dim), random(1, where.kv_heads, 9, where.head_dim, seed=1)
    length = torch.tensor([[4 * where.length]]) if method.dynamic else None
    q = method.rotate(q, positions, "query", weights, where, length)
    k = method.rotate(k, positions, "key", weights, where, length).repeat_interleave(
        where.heads // where.kv_heads, dim=1
    )
    return where.scaling * q @ k.transpose(2, 3)


@pytest.mark.parametrize("where", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("name", [*SPECTRAL, *OTHER_ROTARY])
def test_rotations_depend_on_differences_only(name: str, where: Geometry) -> None:
    positions = torch.tensor([[6, 7, 8, 11, 16, 20, 33, 40, 61]])
    near = _rotated_logits(made(name), where, positions)
    far = _rotated_logits(made(name), where, positions + 1000)
    assert (near - far).abs().max() < 1e-3


@pytest.mark.parametrize("name", FADING)
def test_fading_depends_on_differences_only(name: str) -> None:
    where, positions = geometry(), torch.tensor([0, 1, 5, 9, 60, 300])
    q, k = random(4, 6, 64), random(2, 6, 64, seed=1)
    near = fading(made(name), where, q, k, positions, positions)
    far = fading(made(name), where, q, k, positions + 1000, positions + 1000)
    assert (near - far).nan_to_num(0.0).abs().max() < 1e-3


@pytest.mark.parametrize("name", [*SPECTRAL, *OTHER_ROTARY])
def test_rotations_keep_norms(name: str) -> None:
    for where in GEOMETRIES.values():
        method = made(name)
        x = random(1, where.heads, 9, where.head_dim)
        y = method.rotate(x, torch.arange(9)[None] * 7, "query", loud(method.weights(where)), where)
        if y.shape[-1] != x.shape[-1]:  # a polar form: each component is a radius, softplus(x)
            norm = torch.nn.functional.softplus(x).norm(dim=-1)
        else:
            inv_freq, amplitude = (
                method.frequencies(where) if method.spectral or isinstance(method, Scaling) else (None, 1.0)
            )
            if name == "rnope" and where.rotation.rope_type != "default":
                amplitude = where.rotation.attention_factor
            dim = where.rotation.dim if inv_freq is None else 2 * len(inv_freq)
            scale = torch.ones(where.head_dim)
            scale[:dim] = float(amplitude)
            norm = (x * scale).norm(dim=-1)
        torch.testing.assert_close(y.norm(dim=-1), norm, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [n for n in _of(Scaling) if "factor" in options(n)])
def test_factor_1_is_the_identity(name: str) -> None:
    for where in GEOMETRIES.values():
        inv_freq, amplitude = made(name, factor=1.0).frequencies(where)
        torch.testing.assert_close(inv_freq, where.rotation.inv_freq, rtol=3e-7, atol=0)
        assert amplitude == where.rotation.attention_factor


@pytest.mark.parametrize("name", BANDS)
def test_bands_change_nothing_near_or_at_factor_1(name: str) -> None:
    where, positions = geometry(length=64), torch.arange(10)
    q, k = random(4, 10, 64), random(2, 10, 64, seed=1)
    plain = turn(q, positions[:, None] * where.rotation.inv_freq)
    key = turn(k.repeat_interleave(2, dim=0), positions[:, None] * where.rotation.inv_freq)
    wanted = (where.scaling * plain @ key.transpose(1, 2)).masked_fill(positions[None] > positions[:, None], -math.inf)
    method = made(name)
    scale = method.bands(where)[0].amplitude
    torch.testing.assert_close(reindexed(method, where, q, k, positions, positions), wanted * scale)
    neutral = {"factor": 1.0, "group_size": 1}
    if same := {f.name: neutral[f.name] for f in fields(method) if f.name in neutral}:
        far = torch.arange(10) * 37
        got = reindexed(made(name, **same), where, q, k, far, far)
        plain = turn(q, far[:, None] * where.rotation.inv_freq)
        key = turn(k.repeat_interleave(2, dim=0), far[:, None] * where.rotation.inv_freq)
        wanted = (where.scaling * plain @ key.transpose(1, 2)).masked_fill(far[None] > far[:, None], -math.inf)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*SPECTRAL, *OTHER_ROTARY, *FADING, *BANDS, *QUERY])
def test_finite_at_131072_tokens(name: str, dtype: torch.dtype) -> None:
    where = geometry(length=4096)
    method = made(name)
    positions = torch.tensor([0, 1, 4095, 4096, 65536, 131070, 131071])
    q, k = random(4, 7, 64).to(dtype), random(2, 7, 64, seed=1).to(dtype)
    if isinstance(method, Rotary):
        weights = {n: w.to(dtype) for n, w in method.weights(where).items()}
        got = method.rotate(q[None], positions[None], "query", weights, where, torch.tensor([[131072]]))
        assert got.dtype == dtype
    elif isinstance(method, QueryScale):
        got = method.factor_at(positions[None], where)
    else:
        make = reindexed if isinstance(method, Bands) else fading
        got = make(method, where, q, k, positions, positions)
        got = got[got != -math.inf]
    assert got.isfinite().all()
    assert got.abs().max() > 0


@pytest.mark.parametrize("name", [n for n in OTHER_ROTARY if made(n).weights(geometry())])
def test_gradients_reach_every_weight(name: str) -> None:
    where, method = geometry(), made(name)
    weights = {n: w.clone().requires_grad_() for n, w in method.weights(where).items()}
    positions = torch.arange(8)[None]
    q = method.rotate(random(1, 4, 8, 64), positions, "query", weights, where)
    k = method.rotate(random(1, 2, 8, 64, seed=1), positions, "key", weights, where).repeat_interleave(2, dim=1)
    (q @ k.transpose(2, 3)).square().sum().backward()
    for weight, value in weights.items():
        assert value.grad is not None, weight
        assert value.grad.isfinite().all(), weight
        assert value.grad.abs().max() > 0, weight


def test_scaling_and_training_free_methods_need_nothing() -> None:
    assert {n for n in [*_of(Scaling), *BANDS, *QUERY] if _CLASSES[n].needs != "nothing"} == set()


@pytest.mark.parametrize("name", [n for n in SPECTRAL if made(n).dynamic])
def test_nothing_is_kept_between_calls(name: str) -> None:
    """A long text must not change how a later short one is read, nor its neighbour in the batch."""
    where, method = geometry(), made(name)
    alone = method.frequencies(where, torch.tensor([[40]]))[0]
    method.frequencies(where, torch.tensor([[5000]]))
    assert torch.equal(method.frequencies(where, torch.tensor([[40]]))[0], alone)
    together = method.frequencies(where, torch.tensor([[40], [5000]]))[0]
    assert torch.equal(together[0], alone[0])
    assert not torch.equal(together[1], alone[0])
    assert not type(method).exact_decode


# traps of published code ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "variant"), cases(BANDS))
def test_each_key_counts_once_and_in_tokens_of_whole_shift(name: str, variant: dict[str, Any]) -> None:
    """No key falls into two ranges or none, at no distance; groups and chunks never give fractions."""
    where, method = geometry(length=64), made(name, **variant)
    for m in (0, 9, 10, 63, 64, 200):
        for n in range(m + 1):
            got = _relative(method, where, m, n)
            hidden = method.visible(torch.tensor([[m]]), torch.tensor([[n]]), where)
            wanted = oracle(name).relative(method, where, m, n)
            assert (wanted is None) == (hidden is not None and not bool(hidden))
            assert wanted is None or got == pytest.approx(wanted)
            assert got == int(got) or "factor" in {f.name for f in fields(method)}


def test_self_extend_starts_its_groups_at_the_window() -> None:
    """With a group that does not divide the window the farthest near key and the nearest far key stay in order."""
    method, where = build("self_extend", group_size=3, window=10), geometry(length=64)
    rows = [[_relative(method, where, m, n) for n in range(m + 1)] for m in range(200)]
    assert all(a >= b - 1 for row in rows for a, b in pairwise(row))
    assert method.target_length(where) == (64 - 10) * 3 + 10
    assert max(rows[171]) <= 64


def test_hidden_keys_stay_hidden_under_a_softcap() -> None:
    """A softcap turns minus infinity into a finite logit, so what a method hides is hidden after it."""
    where, positions = geometry(length=16), torch.arange(24)
    method = build("streaming", sinks=2, window=5)
    q, k, v = random(1, 4, 24, 64), random(1, 4, 24, 64, seed=1), random(1, 4, 24, 64, seed=2)

    def last(values: Tensor) -> Tensor:
        output, _ = blockwise(
            q,
            values,
            None,
            True,
            lambda rows, bar: reindexed(method, where, q[0], k[0], positions, positions)[None, :, rows],
            softcap=1.5,
            visible=lambda rows: method.visible(positions[None, rows], positions[None], where),
        )
        return output[:, -1]

    other = v.clone()
    other[:, :, 10] += 100
    assert torch.equal(last(v), last(other))
    other[:, :, 1] += 100
    assert not torch.allclose(last(v), last(other))


def test_ms_poe_takes_ranks_and_keeps_them() -> None:
    from pospatch.methods.ms_poe import head_order

    attention = torch.full((4, 2, 40), 1 / 40)
    for head, peaks in enumerate(
        (1, 0, 3, 2)
    ):  # ranks 2, 3, 0, 1: an argsort alone would give 2, 3, 0, 1 reversed in role
        attention[head, -1, :peaks] = 1.0
    ranks = head_order(attention, 4)
    assert ranks == [2, 3, 0, 1]
    uneven = torch.full((3, 1, 40), 1 / 40)
    for head, peaks in enumerate((1, 3, 2)):
        uneven[head, -1, :peaks] = 1.0
    assert head_order(uneven, 3) == [2, 0, 1]  # ranks; the argsort array is [1, 2, 0]
    where = geometry(heads=8, kv_heads=4)
    ratios = build("ms_poe", head_order=ranks).ratios(where)
    torch.testing.assert_close(ratios, torch.tensor([1.5, 1.65, 1.2, 1.35]))
    with pytest.raises(BadOption, match="head_order"):
        build("ms_poe", head_order=[0, 0, 1, 2]).fits(where)


@pytest.mark.parametrize("name", FADING)
def test_fading_is_stable_at_100k_tokens(name: str) -> None:
    where = geometry()
    queries, keys = torch.tensor([99990, 100000]), torch.tensor([0, 50000, 99000, 99990, 99999, 100000])
    q, k = random(4, 2, 64), random(2, 6, 64, seed=1)
    got = fading(made(name), where, q, k, queries, keys)
    wanted = oracle(name).oracle(made(name), where, q, k, queries, keys)
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=0.02)  # float32 angles at 100000
    # pieces far apart in one block of queries, as with skipped positions
    apart = torch.tensor([5, 60000, 130000])
    got = fading(made(name), where, q[:, :1].expand(-1, 3, -1), k[:, :3], apart, apart)
    wanted = oracle(name).oracle(made(name), where, q[:, :1].expand(-1, 3, -1), k[:, :3], apart, apart)
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=0.02)


def test_resonance_and_mixed_start() -> None:
    where = geometry(head_dim=64)
    lengths, quarter = oracle("rope_mixed").start(made("rope_mixed"), where)
    fx, fy = made("rope_mixed").weights(where)["frequencies"]
    torch.testing.assert_close(torch.hypot(fx, fy), torch.tensor(lengths).expand(2, -1))
    turned = torch.atan2(fy, fx)[:, 16:] - torch.atan2(fy, fx)[:, :16]
    torch.testing.assert_close(turned.remainder(2 * math.pi), torch.full_like(turned, quarter))
    other = made("rope_mixed").weights(where.with_(layer=5))["frequencies"]
    assert not torch.equal(other[0], fx)


def test_m_rope_with_three_different_rows() -> None:
    where = geometry(head_dim=128, heads=1, kv_heads=1)
    x, rows = random(1, 1, 5, 128), torch.tensor([[0, 1, 1, 1, 2], [0, 3, 4, 5, 6], [7, 8, 0, 1, 9]])
    for interleaved, section in ((False, [16, 24, 24]), (True, [24, 20, 20])):
        method = build("m_rope", mrope_section=section, mrope_interleaved=interleaved)
        got = method.rotate(x, rows[:, None], "query", {}, where)
        wanted = oracle("m_rope").three_rows(method, where, x, rows)
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-4)
    assert build("m_rope").axes(where).bincount().tolist() == [16, 24, 24]
    with pytest.raises(BadOption, match=r"mrope_section.*64"):
        build("m_rope", mrope_section=[16, 24, 25]).fits(where)


def test_pope_has_content_in_the_radius_and_position_in_the_angle() -> None:
    where, method = geometry(head_dim=64, heads=1, kv_heads=1), made("pope")
    weights = {"bias": torch.full((1, 64), -1.0)}
    q, k = random(1, 1, 1, 64), random(1, 1, 1, 64, seed=1)
    m, n = torch.tensor([[9]]), torch.tensor([[4]])
    got = method.rotate(q, m, "query", weights, where) @ method.rotate(k, n, "key", weights, where).transpose(2, 3)
    size = torch.nn.functional.softplus(q) * torch.nn.functional.softplus(k)
    angle = (4 - 9) * 10000.0 ** (-torch.arange(64) / 64) - 1.0
    torch.testing.assert_close(got.flatten(), (size * angle.cos()).sum().flatten(), rtol=1e-5, atol=1e-5)


# refusals ---------------------------------------------------------------------------------------------------------------

_WRONG = [math.nan, math.inf, -math.inf, 0, -4, 1e308, "4", None, True, [4], {}, 4j]


def _bad(rule: Any, value: Any) -> bool:
    """True where an option with this rule must refuse the value."""
    if value is None:
        return not rule["optional"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    if not math.isfinite(value) or abs(value) > 2**40:
        return True
    low, above = rule.get("low", -(2**40)), rule.get("above", -(2**40))
    return value < low or value <= above or (rule["kind"] == "integer" and isinstance(value, float))


@pytest.mark.parametrize("name", EVERY)
def test_bad_values_raise_and_name_the_option(name: str) -> None:
    for item in fields(_CLASSES[name]):
        if item.metadata.get("kind") not in ("number", "integer"):
            continue
        for value in [*_WRONG, 2.5]:
            if _bad(item.metadata, value):
                with pytest.raises(BadOption, match=re.escape(item.name)) as raised:
                    made(name, **{item.name: value})
                assert repr(value) in str(raised.value)
                assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize("name", EVERY)
def test_unknown_and_missing_options(name: str) -> None:
    with pytest.raises(BadOption, match="facter"):
        build(name, **{**options(name), "facter": 2.0})
    for missing in options(name):
        with pytest.raises(BadOption, match=missing):
            build(name)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("yarn", {"beta_fast": 1.0, "beta_slow": 1.0}),
        ("dynamic_yarn", {"beta_fast": 1.0, "beta_slow": 32.0}),
        ("llama3", {"low_freq_factor": 4.0, "high_freq_factor": 4.0}),
        ("ntk_by_parts", {"beta_0": 0.5, "beta_1": 0.75}),
        ("ntk_by_parts", {"gamma_0": 2.0, "gamma_1": 2.0}),
        ("ms_poe", {"min_ratio": 2.0, "max_ratio": 1.5}),
    ],
)
def test_rules_between_options_name_both(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(BadOption) as raised:
        made(name, **wrong)
    assert all(option in str(raised.value) for option in wrong)


@pytest.mark.parametrize(
    ("name", "wrong", "words"),
    [
        ("longrope", {"short_factor": [1.0] * 31}, ["short_factor", "31", "32"]),
        ("longrope", {"long_factor": [1.0] * 64}, ["long_factor", "64", "32"]),
        ("self_extend", {"window": 64}, ["window", "64"]),
        ("rerope", {"window": 99}, ["window", "99", "64"]),
        ("leaky_rerope", {"window": 64}, ["window", "64"]),
        ("dca", {"chunk_size": 65}, ["chunk_size", "65", "64"]),
        ("dca", {"chunk_size": 8, "local_size": 8}, ["chunk_size", "local_size"]),
        ("string_shift", {"shift": 8, "window": 8}, ["shift", "window"]),
        ("streaming", {"sinks": 4, "window": 61}, ["sinks", "window", "64"]),
    ],
)
def test_options_that_the_model_refuses(name: str, wrong: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(BadOption) as raised:
        made(name, **wrong).fits(geometry())
    assert all(word in str(raised.value) for word in words)


@pytest.mark.parametrize("value", [[1.0, math.nan], [0.0, 1.0], "12", 1.0, [1.0, "x"]])
def test_longrope_lists_hold_positive_numbers(value: Any) -> None:
    for option in ("short_factor", "long_factor"):
        with pytest.raises(BadOption, match=option):
            made("longrope", **{option: value})


@pytest.mark.parametrize("name", [*_of(Scaling), *BANDS])
def test_what_builds_on_a_rotation_says_so(name: str) -> None:
    bare = Geometry(heads=4, head_dim=64, width=256, length=64)
    with pytest.raises(UnsupportedHost, match="rope"):
        made(name).fits(bare)


@pytest.mark.parametrize("name", [n for n in [*_of(Rotary), *FADING] if not issubclass(_CLASSES[n], Scaling)])
def test_rotations_of_their_own_work_where_nothing_rotates(name: str) -> None:
    bare = geometry(heads=4, kv_heads=2).with_(rotation=None)
    method = made(name)
    method.fits(bare)
    if isinstance(method, Rotary):
        assert method.rope_parameters(bare) is None
        x = method.rotate(random(1, 4, 3, 64), torch.arange(3)[None], "query", method.weights(bare), bare)
        assert x.isfinite().all()
        assert not torch.equal(x[:, :, 1], x[:, :, 2])
    odd = Geometry(heads=3, head_dim=33, width=99, length=64, layers=8, grid=(4, 5))
    if name != "pope":  # the polar form turns single dimensions
        with pytest.raises(BadOption, match="head_dim"):
            method.fits(odd)


def test_patch_methods_need_a_grid() -> None:
    needing = [n for n in OTHER_ROTARY if "prefix" in {f.name for f in fields(_CLASSES[n])}]
    assert len(needing) >= 3
    for name in needing:
        with pytest.raises(UnsupportedHost, match="grid"):
            made(name).fits(geometry(grid=None))


@pytest.mark.parametrize("name", _of(Nothing))
def test_nothing_on_two_sided_attention_is_refused(name: str) -> None:
    two_sided = geometry(causal=False)
    with pytest.raises(UnsupportedHost, match="order"):
        made(name).fits(two_sided)
    made(name, allow_bidirectional=True).fits(two_sided)
    made(name).fits(geometry())


@pytest.mark.parametrize("name", [n for n in EVERY if _CLASSES[n].causal_only])
def test_causal_only_is_refused_on_two_sided_attention(name: str) -> None:
    with pytest.raises(UnsupportedHost):
        made(name).fits(geometry(causal=False))


@pytest.mark.parametrize("name", EVERY)
def test_docstrings_and_tables_are_complete(name: str) -> None:
    cls = _CLASSES[name]
    text = cls.__doc__ or ""
    assert cls.source
    assert cls.family
    assert "Source:" in text
    for item in fields(cls):
        if item.name != "layers":
            assert item.name in text, f"{name}: {item.name} is not described"


@pytest.mark.parametrize(("name", "variant"), cases(MINE))
def test_options_survive_a_record(name: str, variant: dict[str, Any]) -> None:
    method = made(name, **variant)
    assert build(name, **json.loads(json.dumps(method.options()))) == method


@pytest.mark.parametrize("name", [n for n in MINE if hasattr(_CLASSES[n], "target_length")])
def test_reached_lengths(name: str) -> None:
    where, method = geometry(length=64), made(name)
    reached = method.target_length(where)
    if "factor" in options(name):
        assert reached == 4 * 64
    else:
        assert reached is None or reached >= 64
