"""The search for divisors: the evolution on a known landscape, resumption to the bit, budgets, use by `apply`."""

from __future__ import annotations

import json
import math

import pytest
import torch

import pospatch
from pospatch.errors import AlreadyPatched, BadOption
from pospatch.evaluate._head import SlicedHead
from pospatch.factors import Evolution, Found, search
from pospatch.factors import _search as module
from pospatch.factors._evolution import monotone
from pospatch.factors._needles import answer_loss, questions
from tests.measured import characters, own_losses, text_ids, tiny

TEXT = " ".join(f"Sentence {n} tells of {chr(97 + n % 26) * (3 + n % 5)} and ends." for n in range(400))
SMALL = Evolution(population=6, generations=3, mutations=2, crossovers=2, parents=3)
OPTIONS = {"length": 300, "needles": 2, "evolution": SMALL, "progress": False}


@pytest.fixture
def model():
    return tiny("llama", max_position_embeddings=100)


def test_the_evolution_nears_the_bottom_of_a_known_landscape():
    target = (1.0, 1.2, 1.5, 2.1, 2.8, 3.5, 3.9, 4.0)
    seeds = [(4.0,) * 8, tuple(4 ** (index / 7) for index in range(8))]

    def loss(candidate):
        assert list(candidate) == sorted(candidate)
        assert candidate[0] >= 1
        assert candidate[-1] <= 5
        return sum((a - b) ** 2 for a, b in zip(candidate, target, strict=True))

    population, complete = Evolution(generations=30).run(seeds, 5.0, loss)
    assert complete
    assert population.history == sorted(population.history, reverse=True)
    assert len(population.history) == 31
    assert population.best(1)[0][1] < 0.05 * min(loss(monotone(each, 0.01, 5.0)) for each in seeds)


def test_defaults_are_the_papers():
    sizes = Evolution()
    assert (sizes.population, sizes.generations, sizes.mutations, sizes.crossovers, sizes.parents) == (
        64,
        40,
        16,
        16,
        32,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"population": 1},
        {"parents": 0},
        {"mutations": -1},
        {"mutations": 0, "crossovers": 0},
        {"change": 0.0},
        {"step": 2.0},
    ],
)
def test_bad_sizes(change):
    with pytest.raises(BadOption):
        Evolution(**change)


def test_the_score_is_the_loss_of_the_answers(model):
    from pospatch.evaluate._tokens import text_tokens

    asked = questions(characters(), text_tokens(characters(), TEXT, 300), 300, 3, "0")
    assert len({question.key for question in asked}) == 3
    losses = [
        own_losses(model, torch.tensor([question.ids + question.answer]))[-len(question.answer) :] for question in asked
    ]
    assert answer_loss(SlicedHead(model), asked) == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)


def test_what_is_found_can_be_applied_and_beats_where_it_began(model, tmp_path):
    before = own_losses(model, text_ids(characters(), 60))
    found = search(model, characters(), TEXT, path=tmp_path / "f", **OPTIONS)
    assert torch.equal(own_losses(model, text_ids(characters(), 60)), before)
    assert found.complete
    assert found.factor == 3
    assert found.long_factor == sorted(found.long_factor)
    assert found.losses["found"] <= min(found.losses[name] for name in ("linear", "ntk", "yarn"))
    assert set(found.held_out) == {"unpatched", "yarn", "found"}
    loaded = Found.load(tmp_path / "f.json")
    assert loaded == found
    assert (tmp_path / "f.png").stat().st_size > 1000
    pospatch.apply(model, "longrope", **loaded.options)
    from pospatch.evaluate._tokens import text_tokens

    asked = questions(characters(), text_tokens(characters(), TEXT, 300), 300, 2, "0/search")
    assert answer_loss(SlicedHead(model), asked) == pytest.approx(found.losses["found"], rel=1e-5)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(BadOption, match="no divisors"):
        Found.load(tmp_path / "x.json")


def counted(monkeypatch, stop=None):
    """The candidates that are measured; the one numbered `stop` interrupts."""
    own, measured = module._Scorer.put_on, []

    def put_on(self, candidate):
        measured.append(candidate)
        if len(measured) == stop:
            raise KeyboardInterrupt
        own(self, candidate)

    monkeypatch.setattr(module._Scorer, "put_on", put_on)
    return measured


def test_an_interrupted_search_repeats_nothing_and_ends_the_same(model, tmp_path, monkeypatch):
    whole = search(model, characters(), TEXT, **OPTIONS)
    with monkeypatch.context() as patch:
        first = counted(patch, stop=5)
        with pytest.raises(KeyboardInterrupt):
            search(model, characters(), TEXT, path=tmp_path / "f", **OPTIONS)
    assert pospatch.inspect(model).method is None
    known = json.loads((tmp_path / "f.partial.json").read_text())["cells"]
    assert len(known) == 5  # 4 candidates, and the unpatched model
    rest = counted(monkeypatch)
    again = search(model, characters(), TEXT, path=tmp_path / "f", **OPTIONS)
    assert not set(first[:4]) & set(rest[:-1])
    assert again == whole
    assert not (tmp_path / "f.partial.json").exists()


def test_losses_of_another_model_of_the_same_name_are_not_used(model, tmp_path, monkeypatch):
    model.config._name_or_path = "runs/seed-0/model"
    with monkeypatch.context() as patch:
        counted(patch, stop=5)
        with pytest.raises(KeyboardInterrupt):
            search(model, characters(), TEXT, path=tmp_path / "f", **OPTIONS)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    model.config._name_or_path = "runs/seed-1/model"
    assert search(model, characters(), TEXT, path=tmp_path / "f", **OPTIONS) == search(
        model, characters(), TEXT, **OPTIONS
    )


def test_a_budget_ends_the_search_with_a_result_to_go_on_from(model, tmp_path):
    part = search(model, characters(), TEXT, path=tmp_path / "f", evaluations=4, **OPTIONS)
    assert (part.evaluations, part.complete) == (4, False)
    whole = search(model, characters(), TEXT, path=tmp_path / "f", **OPTIONS)
    assert whole.complete
    assert whole.evaluations > 4
    assert whole == search(model, characters(), TEXT, **OPTIONS)
    with pytest.raises(BadOption, match="budget ended"):
        search(model, characters(), TEXT, minutes=1e-9, **OPTIONS)
    assert pospatch.inspect(model).method is None


def test_minutes_cover_the_losses_before_and_after_the_candidates(model, tmp_path, monkeypatch):
    """A loss takes a minute: one before, two after, and as many candidates between as there is time for."""
    own, clock = module.answer_loss, [0.0]

    def slow(head, asked):
        clock[0] += 60
        return own(head, asked)

    monkeypatch.setattr(module, "answer_loss", slow)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    part = search(model, characters(), TEXT, path=tmp_path / "f", minutes=6.5, **OPTIONS)
    assert clock[0] == 6 * 60
    assert (part.evaluations, part.complete) == (3, False)
    assert all(math.isfinite(loss) for loss in part.held_out.values())
    clock[0] = 0.0
    again = search(model, characters(), TEXT, path=tmp_path / "f", minutes=4.5, **OPTIONS)
    assert again.evaluations > 3
    assert again.held_out["unpatched"] == part.held_out["unpatched"]  # kept, as yarn's is
    assert clock[0] <= 4 * 60
    with pytest.raises(BadOption, match="took 1 minutes, and a first result needs 4"):
        search(model, characters(), TEXT, minutes=3.5, **OPTIONS)


@pytest.mark.parametrize("evaluations", [None, 3])
def test_the_bar_stands_from_the_first_loss_to_the_last(model, monkeypatch, evaluations):
    from contextlib import contextmanager

    own, shown = module.answer_loss, []

    @contextmanager
    def bar(name, total, enabled):
        shown.append(total)
        yield lambda: shown.append("step")
        shown.append("end")

    def seen(head, asked):
        shown.append("loss")
        return own(head, asked)

    monkeypatch.setattr(module, "bar", bar)
    monkeypatch.setattr(module, "answer_loss", seen)
    search(model, characters(), TEXT, evaluations=evaluations, **OPTIONS)
    assert shown[1:3] == ["loss", "step"]
    assert shown[-1] == "end"
    assert shown.count("step") == shown[0] == 3 + (evaluations or SMALL.population + 3 * 4)


def test_losses_that_are_not_finite_never_win(model, monkeypatch):
    own, calls = module.answer_loss, []

    def broken(head, asked):
        calls.append(1)
        return math.nan if len(calls) in (2, 4) else own(head, asked)

    monkeypatch.setattr(module, "answer_loss", broken)
    assert math.isfinite(search(model, characters(), TEXT, **OPTIONS).losses["found"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"length": 100}, BadOption, "above the trained length"),
        ({"length": 0}, BadOption, "positive integer"),
        ({"needles": 0}, BadOption, "needles"),
        ({"evaluations": 0}, BadOption, "evaluations"),
        ({"minutes": 0}, BadOption, "minutes"),
        ({"length": 90000}, BadOption, "tokens"),
    ],
)
def test_refused_before_anything_is_measured(model, monkeypatch, change, error, message):
    monkeypatch.setattr(module, "answer_loss", lambda *_: pytest.fail("measured"))
    with pytest.raises(error, match=message):
        search(model, characters(), TEXT, **{**OPTIONS, **change})


def test_models_without_one_rotary_encoding_are_refused(model):
    with pytest.raises(pospatch.PospatchError):
        search(tiny("bloom"), characters(), TEXT, **OPTIONS)
    with pytest.raises(AlreadyPatched):
        search(pospatch.apply(model, "linear", factor=2.0), characters(), TEXT, **OPTIONS)
