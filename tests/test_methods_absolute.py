"""Methods that add vectors of position or choose positions: each against its oracle, METHODS.md's properties and traps.

Everything is found through the registry by kind; a method without an oracle fails here.
"""

from __future__ import annotations

import importlib
import json
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from pospatch.errors import BadOption, UnsupportedHost
from pospatch.geometry import Geometry
from pospatch.methods._base import Embedding, Forward, Index, Method, Nothing
from pospatch.methods._documents import documents
from pospatch.methods._table import interpolate
from pospatch.registry import build, method_class, names

_CLASSES = {name: method_class(name) for name in names()}


def _of(*kinds: type) -> list[str]:
    return [name for name, cls in _CLASSES.items() if issubclass(cls, kinds)]


TABLES, INDICES, NOTHING = _of(Embedding), _of(Index), _of(Nothing)
LEVELS = [name for name in INDICES if _CLASSES[name].two_levels]
INDICES = [name for name in INDICES if name not in LEVELS]
DRAWN = [name for name in INDICES if _CLASSES[name].training_only]
FIXED = [name for name in INDICES if name not in DRAWN]
EVERY = [*TABLES, *INDICES, *LEVELS, *NOTHING]


def geometry(*, rows: int | None = 24, width: int = 64, **changes: Any) -> Geometry:
    table = None if rows is None else torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))
    base = {
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "width": width,
        "length": rows or 40,
        "layers": 8,
        "table": table,
    }
    return Geometry(**{**base, **changes})


GEOMETRIES = {
    "small": geometry(),
    "odd heads": geometry(rows=31, width=66, heads=3, kv_heads=3, head_dim=22),
    "one key head": geometry(rows=4, width=8, heads=2, kv_heads=1, head_dim=64),
    "wide": geometry(rows=17, width=256, head_dim=256, heads=2, kv_heads=1, layer=3, causal=False),
    "no table": geometry(rows=None),
}


def oracle(name: str) -> Any:
    return importlib.import_module(f"tests.oracles.{name}")


def cases(group: list[str]) -> list[Any]:
    return [
        pytest.param(build(name, **item), id=f"{name}-{number}")
        for name in group
        for number, item in enumerate(getattr(oracle(name), "VARIANTS", [{}]))
    ]


def refused(method: Method, where: Geometry) -> bool:
    """True where the method says, with its name, that it does not fit."""
    try:
        method.fits(where)
    except (UnsupportedHost, BadOption) as error:
        return method.name in str(error)
    return False


# tables ---------------------------------------------------------------------------------------------------------------


def test_every_method_has_an_oracle() -> None:
    assert not [name for name in EVERY if not hasattr(oracle(name), "oracle")]
    assert len(TABLES) >= 3
    assert len(FIXED) >= 2
    assert len(DRAWN) >= 2
    assert len(LEVELS) >= 1
    assert [n for n in DRAWN if not hasattr(oracle(n), "outcomes")] == []


@pytest.mark.parametrize("where", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("method", cases(TABLES))
def test_tables_equal_the_oracle(method: Embedding, where: Geometry) -> None:
    if refused(method, where):
        trained = where.table is not None
        assert not trained or method.rows(where) > where.length**2 or method.rows(where) % where.length
        return
    table = method.table(where)
    assert table.shape == (method.rows(where), where.width)
    if where.table is None and not method.fixed:  # a new table has random rows, reproducible and small
        assert torch.equal(table, method.table(where))
        assert 0.015 < table.std() < 0.025
        return
    weights = method.weights(where)
    added = method.vectors(table[None], weights)[0] if weights else table
    wanted = torch.tensor(oracle(method.name).oracle(method, where), dtype=torch.double)
    torch.testing.assert_close(added.double(), wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("method", cases(TABLES))
def test_tables_keep_the_type_and_touch_nothing(method: Embedding) -> None:
    where = GEOMETRIES["small"]
    before = where.table.clone()
    table = method.table(where)
    assert table.dtype == torch.float32
    assert torch.equal(where.table, before)
    assert table.untyped_storage().data_ptr() != where.table.untyped_storage().data_ptr()


@pytest.mark.parametrize("resize", [None, "linear", "cubic", "grid", "tile"])
def test_the_same_length_is_the_identity(resize: str | None) -> None:
    for where in GEOMETRIES.values():
        if where.table is not None:
            assert torch.equal(build("learned", resize=resize).table(where), where.table)
            assert torch.equal(build("learned", length=where.length, resize=resize).table(where), where.table)
    where = geometry()
    assert torch.equal(build("hierarchical", factor=1.0).table(where), where.table)


@pytest.mark.parametrize("resize", ["linear", "cubic"])
def test_both_ends_stay_exact(resize: str) -> None:
    where = geometry(rows=29)
    for rows in (30, 57, 58, 100, 113):
        table = build("learned", length=rows, resize=resize).table(where)
        assert torch.equal(table[0], where.table[0])
        torch.testing.assert_close(table[-1], where.table[-1], rtol=1e-6, atol=1e-6)
    doubled = build("learned", length=57, resize=resize).table(
        where
    )  # 2 * (29 - 1) + 1: every second row is an old one
    torch.testing.assert_close(doubled[::2], where.table, rtol=1e-5, atol=1e-6)


def test_cubic_follows_a_cubic() -> None:
    """A spline without knots at the ends is exact for polynomials of third degree, also next to the ends."""
    x = torch.arange(12, dtype=torch.double)[:, None]
    polynomial = torch.cat((x**3 - 4 * x**2 + x - 7, x**2, 2 - x), dim=1) / 100
    dense = torch.linspace(0, 11, 34, dtype=torch.double)[:, None]
    wanted = torch.cat((dense**3 - 4 * dense**2 + dense - 7, dense**2, 2 - dense), dim=1) / 100
    torch.testing.assert_close(interpolate(polynomial, 34, "cubic"), wanted)
    for rows in (2, 3):  # too short for a cubic: a line, a parabola
        short = interpolate(polynomial[:rows], 2 * rows - 1, "cubic")
        assert torch.equal(short[::2], polynomial[:rows])


def test_grid_holds_every_old_row_and_reads_it_for_short_documents() -> None:
    where = geometry(rows=12)
    for factor in (1, 2, 5):
        method = build("learned", factor=factor, resize="grid")
        table = method.table(where)
        assert torch.equal(table[::factor], where.table)
        reading = method.reading(where)
        for tokens in (1, 11, 12, 13, 12 * factor):
            positions = torch.arange(tokens)[None]
            rows = reading.positions(positions, where.with_(length=len(table)), Forward(rows=1))[0].tolist()
            assert rows == oracle("learned").reading(method, where, list(range(tokens)))
            if tokens <= 12:
                assert torch.equal(table[rows], where.table[:tokens])
    assert build("learned", factor=2, resize="grid", short="plain").reading(where) is None
    assert build("learned", factor=2, resize="tile").reading(where) is None


def test_each_document_of_a_row_is_read_by_its_own_length() -> None:
    method = build("learned", factor=3, resize="grid")
    where = geometry(rows=6)
    reading, long = method.reading(where), where.with_(length=18)
    packed = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1]])
    got = reading.positions(packed, long, Forward())
    assert got.tolist() == [[0, 3, 6, 9, 0, 1, 2, 3, 4, 5, 6, 7, 0, 3]]
    padded = torch.arange(9)[None].expand(2, -1)  # right padding, as BERT counts: pads go on counting
    real = torch.tensor([[True] * 4 + [False] * 5, [True] * 9])
    got = reading.positions(padded, long, Forward(rows=2, real=real))
    assert got[0, :4].tolist() == [0, 3, 6, 9]
    assert got[1].tolist() == list(range(9))
    assert got.max() < 18


def test_a_cache_cannot_grow_over_the_old_table() -> None:
    reading = build("learned", factor=3, resize="grid").reading(geometry(rows=6))
    where = geometry(rows=18)
    for step in (torch.tensor([[5]]), torch.tensor([[3, 4, 5]])):
        assert reading.positions(step, where, Forward()).tolist() == [[3 * n for n in step[0].tolist()]]
    with pytest.raises(BadOption, match="short='plain'"):
        reading.positions(torch.tensor([[6]]), where, Forward())
    with pytest.raises(BadOption, match="short='plain'"):
        reading.positions(torch.tensor([[4, 5, 6, 7]]), where, Forward())
    assert reading.positions(torch.tensor([[7]]), where, Forward()).tolist() == [[7]]  # it was long from the start


def test_tile_repeats_whole_and_keeps_trained_positions() -> None:
    where = geometry(rows=10)
    table = build("learned", length=35, resize="tile").table(where)
    assert torch.equal(table[:10], where.table)
    assert torch.equal(table[10:20], where.table)
    assert torch.equal(table[30:], where.table[:5])
    assert table.abs().sum(dim=1).min() > 0  # the published loop left the last row zero


def test_hierarchical_reaches_n_squared_and_starts_as_trained() -> None:
    where = geometry(rows=512, width=4)
    method = build("hierarchical", length=512 * 512)
    method.fits(where)
    table = method.table(where)
    assert table.shape[0] == 262144
    assert torch.equal(table[:512], where.table)
    with pytest.raises(BadOption, match="262144"):
        build("hierarchical", length=262145).fits(where)
    with pytest.raises(BadOption, match="512"):
        build("hierarchical", length=511).fits(where)


def test_hierarchical_alpha() -> None:
    where = geometry(rows=16, width=6)
    assert method_class("hierarchical")().alpha == 0.4
    with pytest.raises(BadOption, match=r"0\.5"):
        build("hierarchical", alpha=0.5)
    for wrong in (0.0, 1.0, -0.2, math.nan):
        with pytest.raises(BadOption, match="alpha"):
            build("hierarchical", alpha=wrong)
    p = where.table.double()
    for alpha in (0.2, 0.4, 0.9):
        q = build("hierarchical", length=256, alpha=alpha).table(where).double()
        u = (p - alpha * p[0]) / (1 - alpha)
        swapped = (1 - alpha) * u[0] + alpha * u  # the first N rows with the two parts exchanged
        assert torch.equal(q[:16], p)
        assert (swapped - p).abs().max() > 0.1
        distinct = torch.cdist(q, q) + torch.eye(256, dtype=torch.double) * 9
        assert distinct.min() > 1e-3  # i * N + j and j * N + i are told apart


def test_sinusoids_of_whisper_end_at_the_base() -> None:
    """width / 2 - 1 steps: the slowest pair turns by exactly 1 / base a token, in the others by a little more."""
    where = geometry(rows=None, width=8)
    slow = {}
    for layout in ("half", "whisper"):
        table = build("sinusoidal", layout=layout, base=100.0).table(where)
        slow[layout] = math.asin(float(table[1, 3]))
    assert slow["whisper"] == pytest.approx(0.01, rel=1e-6)
    assert slow["half"] == pytest.approx(100 ** (-3 / 4), rel=1e-6)
    assert torch.equal(build("sinusoidal").table(where)[0], torch.tensor([0.0, 1.0] * 4))


def test_sinusoids_are_relative() -> None:
    """The product of two rows depends on their distance only, in every layout."""
    for layout in ("interleaved", "half", "whisper"):
        table = build("sinusoidal", layout=layout, length=1200).table(geometry(rows=None)).double()
        near, far = table[:64] @ table[:64].T, table[1000:1064] @ table[1000:1064].T
        torch.testing.assert_close(near, far, rtol=0, atol=1e-4)


def test_the_sinusoids_scale_learns_and_they_do_not() -> None:
    where = geometry(rows=None)
    method = build("sinusoidal", learned_scale=True)
    weights = {name: value.requires_grad_() for name, value in method.weights(where).items()}
    assert weights["scale"].item() == pytest.approx(where.width**-0.5)
    method.vectors(method.table(where)[None], weights).square().sum().backward()
    assert weights["scale"].grad.abs() > 0
    assert method.fixed
    assert build("sinusoidal", scale=2.0).weights(where) == {}


# positions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("method", cases(INDICES))
def test_positions_equal_the_oracle(method: Index, where: Geometry) -> None:
    if refused(method, where):
        assert where.length < 10
        return
    reach = method.target_length(where) or where.length
    for tokens in sorted({1, 2, where.length, reach - 1, reach}):
        positions = torch.arange(tokens)[None]
        got = method.positions(positions, where, Forward())
        assert got[0].tolist() == oracle(method.name).oracle(method, where, tokens)
        assert got.dtype == torch.int64


@pytest.mark.parametrize("method", cases(FIXED))
def test_fixed_positions_decode_as_one_pass(method: Index) -> None:
    where = geometry(rows=10)
    tokens = 20
    whole = method.positions(torch.arange(tokens)[None], where, Forward())[0]
    if method.by_row:  # the length of the document decides, so it is refused rather than wrong where it changes
        with pytest.raises(BadOption, match="group_size"):
            method.positions(torch.tensor([[10]]), where, Forward())
        assert method.positions(torch.tensor([[9]]), where, Forward()).tolist() == [[9]]
        assert method.positions(torch.tensor([[12]]), where, Forward()).tolist() == [[6]]
        return
    stepwise = [method.positions(torch.tensor([[n]]), where, Forward()).item() for n in range(tokens)]
    assert stepwise == whole.tolist()


def test_grouped_by_document_keeps_short_ones() -> None:
    method, where = build("grouped", group_size=None), geometry(rows=10)
    positions = torch.arange(25)[None].expand(3, -1)
    real = torch.arange(25)[None] < torch.tensor([[10], [11], [25]])
    got = method.positions(positions, where, Forward(rows=3, real=real))
    assert got[0, :10].tolist() == list(range(10))
    assert got[1, :11].tolist() == [n // 2 for n in range(11)]
    assert got[2].tolist() == [n // 3 for n in range(25)]
    assert got.max() < 10


@pytest.mark.parametrize("name", DRAWN)
def test_draws_are_the_papers(name: str) -> None:
    """All outcomes occur, no other does, each about as often as it should (chi-squared)."""
    where, tokens, draws = geometry(rows=12), 5, 40
    for variant in oracle(name).VARIANTS:
        method = build(name, **variant)
        wanted = oracle(name).outcomes(method, where, tokens)
        assert sum(wanted.values()) == 1
        rows = 250
        positions = torch.arange(tokens)[None].expand(rows, -1)
        got = torch.cat([method.positions(positions, where, Forward(seed=s, rows=rows)) for s in range(draws)])
        seen = Counter(map(tuple, got.tolist()))
        assert set(seen) <= set(wanted)
        total = draws * rows
        surprise = sum((seen[item] - total * float(p)) ** 2 / (total * float(p)) for item, p in wanted.items())
        freedom = len(wanted) - 1
        assert abs(surprise - freedom) < 5 * math.sqrt(2 * freedom), (surprise, freedom)


@pytest.mark.parametrize("name", DRAWN)
def test_draws_follow_the_seed_and_nothing_else(name: str) -> None:
    method, where = build(name, length=300), geometry(rows=300)
    positions = torch.arange(20)[None].expand(4, -1)
    state = torch.random.get_rng_state()
    first = method.positions(positions, where, Forward(seed=7, rows=4))
    assert torch.equal(first, method.positions(positions, where, Forward(seed=7, rows=4)))
    assert not torch.equal(first, method.positions(positions, where, Forward(seed=8, rows=4)))
    assert torch.equal(state, torch.random.get_rng_state())  # the training's own stream of numbers is left alone
    assert len({tuple(row) for row in first.tolist()}) == 4  # each sequence has its own


@pytest.mark.parametrize("name", DRAWN)
def test_draws_stay_in_range_with_pads_and_packing(name: str) -> None:
    method, where = build(name, length=64), geometry(rows=64)
    left = torch.tensor([[1, 1, 1, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6, 7]])
    right = torch.arange(8)[None].expand(2, -1)
    packed = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 0, 1]])
    real = torch.tensor([[False] * 3 + [True] * 5, [True] * 8])
    for seed in range(50):
        for positions, mask in ((left, real), (right, real.flip(1)), (packed, None), (right, None)):
            got = method.positions(positions, where, Forward(seed=seed, rows=2, real=mask))
            assert got.min() >= 0
            assert got.max() < 64
            steps = (got[:, 1:] - got[:, :-1])[positions[:, 1:] == positions[:, :-1] + 1]
            inside = mask is None or bool(mask.all())
            if inside:
                assert steps.min() >= 1  # order is kept within a document
    alone = method.positions(torch.arange(5)[None], where, Forward(seed=3))
    among = method.positions(left[:1], where, Forward(seed=3, real=real[:1]))[:, 3:]
    assert torch.equal(alone, among)  # pads do not change what a sequence gets


def test_pose_splits_in_the_first_half_and_reaches_the_end() -> None:
    method, where, tokens = build("pose", length=1000), geometry(rows=16), 64
    positions = torch.arange(tokens)[None].expand(8000, -1)
    got = method.positions(positions, where, Forward(seed=1, rows=8000))
    jumps = got[:, 1:] - got[:, :-1]
    assert ((jumps > 1).sum(dim=1) <= 1).all()
    where_jumps = jumps.argmax(dim=1)[(jumps > 1).any(dim=1)] + 1
    assert where_jumps.min() == 1
    assert where_jumps.max() == 32
    assert got.max() == 999
    assert (got[:, 0] == 0).all()


@pytest.mark.parametrize("name", DRAWN)
def test_windows_that_fill_the_range_are_said(name: str) -> None:
    method, where = build(name), geometry(rows=16)
    positions = torch.arange(16)[None]
    with pytest.warns(UserWarning, match="16 positions"):
        got = method.positions(positions, where, Forward(seed=0))
    assert torch.equal(got, positions)


def test_randomized_refuses_what_has_no_sample() -> None:
    with pytest.raises(BadOption, match="length=20"):
        build("randomized", length=16).positions(torch.arange(20)[None], geometry(), Forward(seed=0))


def test_documents() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1, 5, 6], [1, 1, 0, 1, 2, 3, 4]])
    real = torch.tensor([[True] * 7, [False] * 2 + [True] * 5])
    first, length = documents(positions, real)
    assert first.tolist() == [[0, 0, 0, 0, 0, 5, 5], [1, 1, 0, 0, 0, 0, 0]]
    assert length.tolist() == [[3, 3, 3, 2, 2, 7, 7], [0, 0, 5, 5, 5, 5, 5]]


@pytest.mark.parametrize("method", cases(LEVELS))
def test_levels_equal_the_oracle(method: Index) -> None:
    where, generator = geometry(rows=6), torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 12, (3, 60), generator=generator)
    tokens[0, :2] = tokens[1, 30:32] = 3  # a segment of one token, first and in the middle
    positions = torch.arange(60)[None].expand(3, -1)
    forward = Forward(rows=3, tokens=tokens)
    absolute, relative = (f(positions, where, forward) for f in (method.positions, method.relative))
    for row in range(3):
        places, numbers = oracle(method.name).oracle(method, where, tokens[row].tolist())
        assert absolute[row].tolist() == places
        assert relative[row].tolist() == numbers
    assert (absolute == 5).sum() > 3  # the last row is reached and stays
    for start in (0, 1, 25, 59):  # with a cache: all tokens are known, the last positions are asked for
        for size in {1, 60 - start}:
            part = Forward(rows=3, tokens=tokens[:, : start + size])
            assert torch.equal(
                method.positions(positions[:, start : start + size], where, part), absolute[:, start : start + size]
            )
            assert torch.equal(
                method.relative(positions[:, start : start + size], where, part), relative[:, start : start + size]
            )


@pytest.mark.parametrize("method", cases(LEVELS))
def test_levels_do_not_see_pads_and_start_with_each_document(method: Index) -> None:
    where, tokens = geometry(rows=50), torch.randint(1, 12, (1, 20), generator=torch.Generator().manual_seed(2))
    alone = [f(torch.arange(20)[None], where, Forward(tokens=tokens)) for f in (method.positions, method.relative)]
    padded = torch.cat((torch.full((1, 7), -1), tokens), dim=1)
    for pad in (0, 1):
        positions = torch.cat((torch.full((1, 7), pad), torch.arange(20)[None]), dim=1)
        beside = [f(positions, where, Forward(tokens=padded)) for f in (method.positions, method.relative)]
        assert all(torch.equal(a, b[:, 7:]) for a, b in zip(alone, beside, strict=True))
    packed = torch.cat((tokens, tokens), dim=1)
    positions = torch.arange(20).repeat(2)[None]
    both = [f(positions, where, Forward(tokens=packed)) for f in (method.positions, method.relative)]
    assert torch.equal(both[0][:, 20:], alone[0])
    assert torch.equal(both[1][:, 20:] - both[1][:, 20:21], alone[1])  # only differences count


# what every method of the catalogue owes ---------------------------------------------------------------------------------


BAD = [math.nan, math.inf, -math.inf, -4.0, 1e308, True, "4", [4], {}, 2 + 1j]


def required(name: str) -> dict[str, Any]:
    return getattr(oracle(name), "VARIANTS", [{}])[0]


def _numeric(name: str) -> list[tuple[str, Any]]:
    from dataclasses import fields

    found = [(f.name, f.metadata) for f in fields(_CLASSES[name]) if f.metadata.get("kind") in ("number", "integer")]
    return [(option, rule["kind"]) for option, rule in found]


@pytest.mark.parametrize("name", EVERY)
def test_bad_values_raise_and_name_the_option(name: str) -> None:
    for option, kind in _numeric(name):
        for value in [*BAD, *([2.5, 10**12] if kind == "integer" else [])]:
            with pytest.raises(BadOption, match=option):
                build(name, **{**required(name), option: value})
    with pytest.raises(BadOption, match="facter"):
        build(name, **required(name), facter=2)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("value", [3, "13", [], [2.5], [-1], [True], ["a"], [10**12], None])
def test_bad_delimiters(name: str, value: Any) -> None:
    with pytest.raises(BadOption, match="delimiters"):
        build(name, delimiters=value)


@pytest.mark.parametrize(
    ("name", "wrong", "words"),
    [
        ("learned", {"length": 64, "factor": 2.0}, ["length", "factor"]),
        ("learned", {"short": "plain"}, ["short", "grid"]),
        ("learned", {"short": "plain", "resize": "tile"}, ["short", "tile"]),
        ("learned", {"resize": "spline"}, ["resize", "cubic"]),
        ("hierarchical", {"length": 64, "factor": 2.0}, ["length", "factor"]),
        ("grouped", {"group_size": 3, "factor": 2.0}, ["group_size", "factor"]),
        ("sinusoidal", {"layout": "halves"}, ["layout", "whisper"]),
    ],
)
def test_rules_between_options_name_both(name: str, wrong: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(BadOption) as raised:
        build(name, **wrong)
    assert all(word in str(raised.value) for word in words)


@pytest.mark.parametrize(
    ("name", "wrong", "where", "words"),
    [
        ("learned", {"length": 10}, geometry(), ["length=10", "24"]),
        ("learned", {"length": 50, "resize": "grid"}, geometry(), ["50", "24", "72"]),
        ("learned", {"seed": 3}, geometry(), ["seed", "24"]),
        ("learned", {"resize": "tile"}, geometry(rows=None), ["tile", "trained"]),
        ("hierarchical", {}, geometry(rows=None), ["table"]),
        ("sinusoidal", {}, geometry(width=7), ["7", "even"]),
        ("recurrent", {"period": 25}, geometry(), ["25", "24"]),
    ],
)
def test_options_that_the_model_refuses(name: str, wrong: dict[str, Any], where: Geometry, words: list[str]) -> None:
    with pytest.raises((BadOption, UnsupportedHost)) as raised:
        build(name, **wrong).fits(where)
    assert all(word in str(raised.value) for word in words)


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_is_nothing(name: str) -> None:
    method = build(name)
    assert oracle(name).oracle(method, geometry()) is None
    assert method.weights(geometry()) == {}
    assert method.clears
    with pytest.raises(UnsupportedHost, match="order"):
        method.fits(geometry(causal=False))


@pytest.mark.parametrize("name", EVERY)
def test_docstrings_and_tables_are_complete(name: str) -> None:
    cls = _CLASSES[name]
    assert cls.source
    assert cls.family
    from dataclasses import fields

    for option in fields(cls):
        if option.name != "layers":
            assert f"{option.name}:" in cls.__doc__, f"{name}: {option.name} is not in the docstring"


@pytest.mark.parametrize("method", cases(EVERY))
def test_options_survive_a_record(method: Method) -> None:
    assert build(method.name, **json.loads(json.dumps(method.options()))) == method


@pytest.mark.parametrize("name", DRAWN)
def test_evaluation_is_true(name: str) -> None:
    positions: Tensor = torch.arange(9)[None]
    assert build(name, length=64).positions(positions, geometry(), Forward()) is positions
