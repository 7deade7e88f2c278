"""The benchmark: what it compares is what it says, its numbers hang together, and every mistake is one clear message."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pospatch import bench, registry
from pospatch.bench import _build, _cell, _layer, _measure
from pospatch.bench._cell import Cell, method_of
from pospatch.bench._memory import measure_here
from pospatch.bench._peers import PEERS, peers_of
from pospatch.bench._timing import alternate, exponent, ratio
from pospatch.cli import app
from pospatch.errors import BadOption, PospatchError
from pospatch.methods._base import Bands, Bias, Contextual, SummedRotation

TINY = {
    "tiny-llama": (
        "LlamaConfig",
        {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 99, "max_position_embeddings": 64,
        },
    ),
    "tiny-gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99, "n_positions": 64}),
}  # fmt: skip
SCORE = [n for n in registry.names() if issubclass(registry.method_class(n), Bias | Bands | Contextual)]


@pytest.fixture(autouse=True)
def _shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, shape in TINY.items():
        monkeypatch.setitem(_cell.SHAPES, name, shape)


@pytest.mark.parametrize("name", SCORE)
def test_reference_and_ours_are_the_same_attention(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """At the level of attention, so that a ratio compares two ways to the same numbers."""
    found: dict[str, torch.Tensor] = {}
    cell = Cell(model="tiny-llama", work="prefill", length=48, method=name, level="attention")
    if name == "streaming":
        cell = Cell(**{**vars(cell), "options": {"sinks": 2, "window": 62}})
    if not _layer.has_reference(cell):
        assert issubclass(registry.method_class(name), SummedRotation)
        return
    for form in ("_ours", "_reference"):
        inner = getattr(_layer, form)

        def kept(*args: Any, inner: Any = inner, form: str = form) -> Any:
            attention = inner(*args)
            return lambda q, k, v: found.__setitem__(form, attention(q, k, v)) or found[form]

        monkeypatch.setattr(_layer, form, kept)
    for form in ("ours", "reference"):
        torch.manual_seed(0)
        _build.build(Cell(**{**vars(cell), "form": form}))()
    assert (found["_ours"] - found["_reference"]).abs().max() < 2e-5


def test_a_report_of_everything(tmp_path: Path) -> None:
    report = bench.bench(
        "tiny-llama", ["alibi", "self_extend:window=8,group_size=2"], works=["prefill", "decode", "train", "patch"],
        lengths=[16, 32], repeats=2, memory=False, progress=False,
    )  # fmt: skip
    assert [(row["work"], row["length"]) for row in report.rows[:4]] == [("prefill", 16), ("prefill", 32)] * 2
    for row in report.rows:
        forms = {"ours", "plain"} | ({"reference"} if row["work"] in ("prefill", "train") else set())
        assert set(row["seconds"]) == forms
        assert set(row["time_ratio"]) == forms - {"ours"}
        for seen in row["time_ratio"].values():
            assert 0 < seen["low"] <= seen["median"] <= seen["high"]
    assert len(report.growth) == 8
    data, picture = report.save(tmp_path / "report")
    assert json.loads(data.read_text())["rows"] == report.rows
    assert picture.stat().st_size > 1000


def test_memory_of_a_process_of_its_own_grows_with_whole_matrices() -> None:
    """8 heads of 1024 x 1024 in float32 are 32 MB; the blocks of a fold never hold them."""
    cell = Cell(model="llama-135m", work="prefill", length=2048, method="alibi", level="attention")
    whole = bench._memory.peak(Cell(**{**vars(cell), "form": "reference"}))
    assert whole > 9 * 2048**2 * 4
    assert bench._memory.peak(cell) < whole / 4
    with pytest.raises(PospatchError, match=r"ended with 1: .*no shape"):
        bench._memory.peak(Cell(model="llama", work="prefill", length=16))


def test_peak_in_this_process_sees_what_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(cell: Cell, longest: int | None = None) -> Any:
        size = 1000 if longest else 25_000_000
        return lambda: torch.ones(size).sum()

    monkeypatch.setattr(_build, "build", build)
    assert 90e6 < measure_here(Cell(model="tiny-gpt2", work="prefill", length=16)) < 130e6


def test_rounds_alternate_and_ratios_are_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    times = alternate({name: lambda name=name: order.append(name) for name in "abc"}, repeats=4)
    assert order == list("abcbcacababcbca")
    assert [len(each) for each in times.values()] == [4, 4, 4]
    seen = ratio([2.0, 4.0, 60.0], [1.0, 2.0, 10.0])
    assert (seen.low, seen.median, seen.high) == (2.0, 2.0, 4.0)
    assert ratio([3.0], [2.0]).median == 1.5


def test_exponent_is_that_of_a_power() -> None:
    lengths = [512, 1024, 4096]
    assert exponent(lengths, [7e-9 * n**1.7 for n in lengths]) == pytest.approx(1.7)
    assert exponent([512], [1.0]) is None


@pytest.mark.parametrize(
    ("name", "work"),
    [(name, work) for name, peer in PEERS.items() if peer.package == "transformers" for work in peer.works],
)
def test_peers_have_the_same_shape_and_run(name: str, work: str) -> None:
    shape, options = "tiny-gpt2", {}
    if name == "transformers":  # ours, exported: its methods scale a rotation
        shape, options = "tiny-llama", {"factor": 2.0}
    cell = Cell(model=shape, work=work, length=24, method=PEERS[name].methods[0], options=options)
    assert name in peers_of(cell)
    theirs = replace(cell, peer=name)
    _build.build(theirs)()
    config = PEERS[name].model(theirs, 24).config
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (32, 4, 2)


def test_a_real_model_is_measured(tmp_path: Path) -> None:
    _build.make_model("tiny-llama", None, 24, "float32").save_pretrained(tmp_path / "model")
    given = {"methods": ["self_extend:window=16"], "lengths": [48], "repeats": 1, "progress": False}
    for reference in (True, False):
        both = {"works": ["prefill", "decode"], "reference": reference, "memory": reference}
        for row in bench.bench(str(tmp_path / "model"), **both, **given).rows:
            whole = ["reference"] if reference and row["work"] == "prefill" else []
            assert set(row["seconds"]) == {"ours", "plain", *whole}
            assert not reference or row["peak_bytes"]["ours"] > 0


def test_an_encoder_is_measured_as_a_whole() -> None:
    given = {"layers": 1, "lengths": [24], "repeats": 1, "progress": False, "memory": False}
    (row,) = bench.bench("bert-22m", methods=["rope+self_extend:window=8"], works=["prefill"], **given).rows
    assert set(row["seconds"]) == {"ours", "plain", "reference"}
    for wrong in ({"work": "decode"}, {"work": "prefill", "level": "attention"}):
        with pytest.raises(BadOption, match="is an encoder"):
            Cell(model="bert-22m", length=24, **wrong)


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are done are not measured again, and the path keeps its own dot."""
    measured: list[int] = []
    row = _measure._row

    def stopping(cell: Cell, *rest: Any) -> Any:
        measured.append(cell.length)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return row(cell, *rest)

    monkeypatch.setattr(_measure, "_row", stopping)
    command = ["bench", "tiny-llama", "rope", "--lengths", "16,24", "--repeats", "1", "--no-memory"]
    output = ["--output", str(tmp_path / "run.1")]
    stopped = CliRunner().invoke(app, [*command, *output])
    assert stopped.exit_code == 130
    assert "goes on from here" in stopped.output
    done = CliRunner().invoke(app, [*command, *output])
    assert done.exit_code == 0
    assert measured == [16, 24, 24]
    assert [row["length"] for row in json.loads((tmp_path / "run.1.json").read_text())["rows"]] == [16, 24]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.1.json", "run.1.png"]


def test_a_peer_that_cannot_do_it_is_left_out_with_a_note() -> None:
    report = bench.bench(
        "tiny-llama", ["yarn:factor=2,layers=[1]"], lengths=[24], repeats=1, peers=True, memory=False, reference=False,
        progress=False,
    )  # fmt: skip
    assert set(report.rows[0]["seconds"]) == {"ours", "plain"}
    assert "transformers not run" in report.rows[0]["note"]


def test_methods_are_read_with_their_options() -> None:
    assert method_of("alibi") == ("alibi", {})
    assert method_of("t5_bias:num_buckets=8,max_distance=64") == ("t5_bias", {"num_buckets": 8, "max_distance": 64})
    with pytest.raises(BadOption, match="NAME=VALUE"):
        method_of("yarn:2")
    with pytest.raises(PospatchError, match="Did you mean 'factor'"):
        method_of("yarn:facter=2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("gpt3", "alibi"), "Did you mean 'gpt2'"),
        (("tiny-gpt2", "alibee"), "Did you mean 'alibi'"),
        (("tiny-gpt2", "alibi", "--work", "prefil"), "Did you mean 'prefill'"),
        (("tiny-gpt2", "alibi", "--level", "head"), "level='head'"),
        (("tiny-gpt2", "alibi", "--clock", "sun"), "clock='sun'"),
        (("tiny-gpt2", "alibi", "--dtype", "float8"), "dtype='float8'"),
        (("tiny-gpt2", "alibi", "--lengths", "8"), "at least 16"),
        (("tiny-gpt2", "alibi", "--repeats", "0"), "at least 1"),
        (("tiny-gpt2", "alibi", "--reference-limit", "0"), "reference_limit=0 must be above 0 GiB"),
        (("tiny-gpt2", "alibi", "--reference-limit", "nan"), "reference_limit=nan must be above 0 GiB"),
        (("tiny-gpt2", "alibi", "--level", "attention", "--work", "decode"), "level='model'"),
        (("tiny-gpt2", "alibi", "--level", "attention", "--work", "patch"), "level='model'"),
        (("tiny-llama", "rope", "--level", "attention"), "acts outside the attention"),
        (("./nowhere", "alibi", "--level", "attention"), "takes a named shape"),
    ],
)
def test_what_is_asked_wrongly_is_refused(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", *words, "--output", str(tmp_path / "b")], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_and_shows(tmp_path: Path) -> None:
    words = ["bench", "tiny-gpt2", "alibi", "--lengths", "16,32", "--repeats", "1", "--no-memory", "--peers"]
    result = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "b")], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for word in ("plain", "reference", "bloom", "mpt", "time grows as length^"):
        assert word in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"b.json", "b.png"}


@pytest.mark.parametrize("level", _cell.LEVELS)
def test_a_reference_above_the_limit_is_left_out_until_the_limit_is_raised(tmp_path: Path, level: str) -> None:
    """4 matrices of 4 heads x 32 x 32 in float32 are 2**16 bytes: 6.1e-5 GiB."""
    words = ["bench", "tiny-gpt2", "alibi", "--lengths", "32", "--repeats", "1", "--no-memory", "--level", level]
    for limit, runs in (("6e-5", False), ("7e-5", True)):
        chosen = [*words, "--reference-limit", limit, "--output", str(tmp_path / "b")]
        result = CliRunner().invoke(app, chosen, env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        row = json.loads((tmp_path / "b.json").read_text())["rows"][0]
        assert ("reference" in row["seconds"]) == runs
        assert (row["note"] == "") == runs
        assert ("above 6e-05; raise reference_limit (--reference-limit)" in result.stdout) != runs


def test_the_limit_is_shown_by_help() -> None:
    shown = CliRunner().invoke(app, ["bench", "--help"], env={"COLUMNS": "200"}).stdout
    assert "--reference-limit" in shown
    assert "GIB" in shown
