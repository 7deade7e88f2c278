"""Methods compared on a tiny model: figures against plain losses, resumption, refusals, files that cannot be misread."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import pytest
import torch

import pospatch
from pospatch.comparison import Entry, compare, html, markdown, parse, table
from pospatch.errors import AlreadyPatched, BadOption, PospatchError, UnknownName
from pospatch.evaluate._head import SlicedHead
from tests.measured import TEXT, characters, own_losses, text_ids, tiny

METHODS = "linear:factor=4,self_extend:group_size=8:window=8"
OPTIONS = {"methods": METHODS, "lengths": [24, 96], "k": 8, "windows": 3, "progress": False}
HOSTILE = "<script>alert(1)</script>|`a`$x^$ & \"q\" 'p'"


@pytest.fixture
def model():
    return tiny("llama", max_position_embeddings=32)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return compare(tiny("llama", max_position_embeddings=32), characters(), TEXT,
                   path=tmp_path_factory.mktemp("c"), **OPTIONS)  # fmt: skip


def window_losses(model, length):
    ids = text_ids(characters(), 112)
    return torch.cat([own_losses(model, ids[:, end - length : end])[-8:] for end in (96, 104, 112)]).double()


def test_figures_are_those_of_plain_losses(content, model):
    by_label = {each["label"]: each for each in content["entries"]}
    assert set(by_label) == {"unpatched", "linear factor=4", "self_extend group_size=8 window=8"}
    before = {length: window_losses(model, length) for length in (24, 96)}
    for label, each in by_label.items():
        entry = next((entry for entry in parse(METHODS) if entry.label == label), None)
        if entry is not None:
            entry.put_on(model)
        for row in each["rows"]:
            losses = window_losses(model, row["length"])
            assert row["n"] == 24
            assert row["perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-3)
        change = window_losses(model, 24) - before[24]
        assert each["short"]["length"] == 24
        assert each["short"]["change"] == pytest.approx(change.mean().item(), abs=2e-4)
        assert each["short"]["error"] == pytest.approx(change.std(correction=0).item() / math.sqrt(24), abs=2e-4)
        if entry is not None:
            pospatch.remove(model)
    assert by_label["unpatched"]["short"]["percent"] == 0
    assert by_label["unpatched"]["time"] == 1


def test_ranked_by_perplexity_at_the_longest_length(content):
    values = [each["rows"][-1]["perplexity"] for each in content["entries"]]
    assert values == sorted(values)
    head, *rows = table(content)
    assert head[:2] == ["rank", "method"]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert [row[1] for row in rows] == [each["label"] for each in content["entries"]]


def test_the_model_is_left_as_it_was(model, tmp_path):
    before = own_losses(model, text_ids(characters(), 60))
    compare(model, characters(), TEXT, path=tmp_path, **OPTIONS)
    assert torch.equal(own_losses(model, text_ids(characters(), 60)), before)
    assert pospatch.inspect(model).method is None


def test_an_interrupted_comparison_goes_on_and_methods_can_be_added(model, tmp_path, monkeypatch):
    own, read = SlicedHead.losses, []

    def counted(self, ids, start=0, on_layer=None):
        if len(read) == 8:  # the control's six windows and two of the first method's
            raise KeyboardInterrupt
        read.append(ids.shape[1])
        return own(self, ids, start, on_layer)

    monkeypatch.setattr(SlicedHead, "losses", counted)
    with pytest.raises(KeyboardInterrupt):
        compare(model, characters(), TEXT, path=tmp_path, **OPTIONS)
    assert pospatch.inspect(model).method is None
    assert not (tmp_path / "comparison.html").exists()
    monkeypatch.setattr(SlicedHead, "losses", lambda self, *rest: (read.append(0), own(self, *rest))[1])
    found = compare(model, characters(), TEXT, path=tmp_path, **OPTIONS)
    assert len(read) == 18
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        f"comparison.{kind}" for kind in ("html", "json", "md", "png")
    ]
    monkeypatch.setattr(SlicedHead, "losses", own)
    fresh = compare(model, characters(), TEXT, path=tmp_path / "fresh", **OPTIONS)
    assert [each["rows"][0]["loss"] for each in found["entries"]] == [
        each["rows"][0]["loss"] for each in fresh["entries"]
    ]


def stopped_after(cells, monkeypatch, run):
    """Run until so many windows are measured."""
    own, read = SlicedHead.losses, []

    def counted(self, *rest):
        if len(read) == cells:
            raise KeyboardInterrupt
        read.append(0)
        return own(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(SlicedHead, "losses", counted)
        with pytest.raises(KeyboardInterrupt):
            run()


def factors(last):
    return f"longrope:factor=4:short_factor=({'1.0,' * 4}):long_factor=[1.0001,1.0002,1.0003,{last}]"


def test_entries_whose_labels_are_shortened_alike_are_two(model, tmp_path):
    lists = [factors(4.0), factors(3.0)]
    first, second = parse(",".join(lists))
    assert first.label.endswith("...")
    assert second.label == f"{first.label} (2)"
    assert (first.options["long_factor"][-1], second.options["long_factor"][-1]) == (4.0, 3.0)
    found = compare(model, characters(), TEXT, path=tmp_path / "both", **{**OPTIONS, "methods": ",".join(lists)})
    losses = {each["label"]: each["rows"][-1]["loss"] for each in found["entries"]}
    assert len(losses) == 3
    assert losses[first.label] != losses[second.label]


def test_cells_of_an_entry_whose_label_is_shortened_alike_are_not_used(model, tmp_path, monkeypatch):
    stopped_after(11, monkeypatch, lambda: compare(
        model, characters(), TEXT, path=tmp_path / "c", **{**OPTIONS, "methods": factors(4.0)}
    ))  # fmt: skip
    other = {**OPTIONS, "methods": factors(3.0)}
    found = compare(model, characters(), TEXT, path=tmp_path / "c", **other)
    fresh = compare(model, characters(), TEXT, path=tmp_path / "fresh", **other)
    assert [each["rows"][-1]["loss"] for each in found["entries"]] == [
        each["rows"][-1]["loss"] for each in fresh["entries"]
    ]


def test_cells_of_another_model_of_the_same_name_are_not_used(model, tmp_path, monkeypatch):
    model.config._name_or_path = "runs/seed-0/model"
    stopped_after(9, monkeypatch, lambda: compare(model, characters(), TEXT, path=tmp_path / "c", **OPTIONS))
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    model.config._name_or_path = "runs/seed-1/model"
    found = compare(model, characters(), TEXT, path=tmp_path / "c", **OPTIONS)
    fresh = compare(model, characters(), TEXT, path=tmp_path / "fresh", **OPTIONS)
    assert [each["rows"][0]["loss"] for each in found["entries"]] == [
        each["rows"][0]["loss"] for each in fresh["entries"]
    ]


def test_one_entry_is_known_by_what_is_measured():
    with pytest.raises(BadOption, match="given twice"):
        parse("linear:factor=2,linear:factor=2.0")
    with pytest.raises(BadOption, match="given twice"):
        parse([Entry(label="one", methods=("linear",), options={"factor": 2.0}), "linear:factor=2"])
    labelled = [Entry(label="unpatched", methods=("linear",), options={"factor": f}) for f in (2.0, 3.0)]
    assert [each.label for each in parse(labelled)] == ["unpatched (2)", "unpatched (3)"]


@pytest.mark.parametrize("method", ["learned:length=80", "grouped", "hierarchical:factor=1.25"])
def test_a_patched_table_that_ends_cannot_be_read_beyond(method, tmp_path):
    short = tiny("gpt2", n_positions=40)
    found = compare(short, characters(), TEXT, path=tmp_path, **{**OPTIONS, "methods": f"{method},recurrent"})
    assert [row["n"] for each in found["entries"] for row in each["rows"]] == [24, 24, 24, 0, 24, 0]
    assert found["entries"][0]["label"] == "recurrent"
    assert (tmp_path / "comparison.md").read_text().count("cannot read") == 3


def test_a_model_that_cannot_read_so_far_is_the_last_and_says_so(tmp_path):
    short = tiny("gpt2", n_positions=64)
    found = compare(short, characters(), TEXT, path=tmp_path, **{**OPTIONS, "methods": "rope,alibi"})
    control = found["entries"][-1]
    assert control["label"] == "unpatched"
    assert [row["n"] for row in control["rows"]] == [24, 0]
    words = (tmp_path / "comparison.md").read_text()
    assert "cannot read" in words
    assert "(untrained)" in words


def test_losses_that_are_not_finite_are_written_and_ranked_last(model, tmp_path, monkeypatch):
    own = SlicedHead.losses

    def broken(self, ids, *rest):
        stacked = pospatch.inspect(model).method == "linear"
        return own(self, ids, *rest) * (float("nan") if stacked else 1.0)

    monkeypatch.setattr(SlicedHead, "losses", broken)
    found = compare(model, characters(), TEXT, path=tmp_path, **OPTIONS)
    assert found["entries"][-1]["label"] == "linear factor=4"
    assert found["entries"][-1]["rows"][0]["perplexity"] is None
    assert json.loads((tmp_path / "comparison.json").read_text())["entries"][-1]["short"]["change"] is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"methods": ""}, BadOption, "at least one method"),
        ({"methods": "yran:factor=2"}, UnknownName, "Did you mean 'yarn'"),
        ({"methods": "yarn"}, BadOption, "'factor' is required"),
        ({"methods": "yarn:factor=2:factor=3"}, BadOption, "each name once"),
        ({"methods": "yarn:factor"}, BadOption, "NAME=VALUE"),
        ({"methods": "dca,dca"}, BadOption, "given twice"),
        ({"methods": "longrope:factor=2:short_factor=(1,2)"}, BadOption, "numbers"),
        ({"lengths": 8}, BadOption, "at least 16"),
        ({"lengths": [24, 90000]}, BadOption, "tokens"),
        ({"k": 0}, BadOption, "k must be"),
    ],
)
def test_refused_before_anything_is_measured(model, tmp_path, monkeypatch, change, error, message):
    monkeypatch.setattr(SlicedHead, "losses", lambda *_: pytest.fail("measured"))
    with pytest.raises(error, match=message) as caught:
        compare(model, characters(), TEXT, path=tmp_path / "none", **{**OPTIONS, **change})
    assert isinstance(caught.value, PospatchError)
    assert not (tmp_path / "none").exists()
    assert pospatch.inspect(model).method is None


def test_a_patched_model_is_refused(model, tmp_path):
    with pytest.raises(AlreadyPatched, match="remove"):
        compare(pospatch.apply(model, "linear", factor=2.0), characters(), TEXT, path=tmp_path, **OPTIONS)


def test_commas_inside_brackets_belong_to_the_value():
    first, second = parse("longrope:factor=2:short_factor=(1, 2):long_factor=[3,4], rope+logn:rope_theta=5e5")
    assert first.options == {"factor": 2, "short_factor": (1, 2), "long_factor": [3, 4]}
    assert second == Entry(
        label="rope + logn rope_theta=500000.0", methods=("rope", "logn"), options={"rope_theta": 5e5}
    )


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.words = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        assert not any(name.startswith("on") for name, _ in attributes)

    def handle_data(self, data):
        self.words.append(data)


def test_the_report_needs_no_network_and_hostile_names_stay_words(model, tmp_path):
    model.config._name_or_path = f"/models/{HOSTILE.replace('/', '')}"
    text = f"{HOSTILE} " + TEXT
    found = compare(model, characters(), text, path=tmp_path, **OPTIONS)
    page = (tmp_path / "comparison.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.tags
    assert all(link.startswith("data:image/png;base64,") for link in tags.links)
    assert len(tags.links) == 1
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|@import|<link", page)
    assert found["model"]["name"] in "".join(tags.words)
    words = markdown(found)
    assert "<script>" not in words
    for line in words.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == len(table(found)[0]) + 1
    assert html(found, b"x").count("<tr") == 4
