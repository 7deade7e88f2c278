"""Distillation: what is compared, that the student comes closer to the teacher, exact resume, what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel

import pospatch
from pospatch.errors import BadOption
from pospatch.training import processes
from pospatch.training.arguments import parse
from pospatch.training.distill import DistillRun, DistillTrainer, distance, masked
from pospatch.training.documents import frame, rows
from pospatch.training.lengths import Lengths
from pospatch.training.options import DataArguments, DistillArguments
from pospatch.training.run import run
from tests.test_training import _LLAMA, _config

_BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "vocab_size": 259,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
}
_RUNS: dict[str, dict[str, Any]] = {
    "decoder, logits": {"model": {**_LLAMA, "initializer_range": 0.3}, "patch": "alibi"},
    "decoder, hidden, lora": {
        "model": {**_LLAMA, "initializer_range": 0.3},
        "patch": "t5_bias",
        "match": "hidden",
        "tuning": "lora",
    },
    "masked": {
        "model": _BERT,
        "head": "masked",
        "patch": "alibi",
        "mask_share": 0.0,
        "warm_start": True,
        "tuning": "full",
    },
    "decoder, layers": {"model": {**_LLAMA, "initializer_range": 0.3}, "patch": "alibi", "match": "layers"},
    "encoder": {
        "model": _BERT,
        "head": "encoder",
        "patch": "rope",
        "warm_start": True,
        "documents": "padded",
        "tuning": "full",
    },
    "encoder, pieces of several lengths": {
        "model": _BERT,
        "head": "encoder",
        "patch": "rope",
        "warm_start": True,
        "match": "hidden+embedding",
        "length_mix": [8, 12, 24],
        "tuning": "full",
    },
}


def _distill(folder: Path, **changes: Any) -> Path:
    settings = {
        "sequence_length": 24,
        "base_length": 24,
        "eval_windows": 4,
        "max_steps": 30,
        "save_steps": 15,
        "per_device_train_batch_size": 8,
        "train_tokens": 20000,
        "learning_rate": 3e-3,
        **changes,
    }
    return _taught(folder, DistillArguments, DistillRun, **settings)


def _taught(folder: Path, learning: Any, kind: Any, **settings: Any) -> Path:
    """Where a run of these settings left what it did."""
    run(parse(["--config", str(_config(folder, **settings))], learning), kind)
    return folder / "out"


def _results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


@pytest.mark.parametrize("changes", _RUNS.values(), ids=_RUNS.keys())
def test_a_student_comes_closer_to_its_teacher_and_resumes(
    tmp_path: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = _distill(tmp_path / "whole", **changes)
    found = _results(whole)
    before, after = found["before"]["base"], found["after"]["base"]
    assert after["loss"] < 0.8 * before["loss"]
    assert after["agreement"] > before["agreement"]
    shutil.copytree(whole, tmp_path / "half" / "out")
    shutil.rmtree(tmp_path / "half" / "out" / "checkpoint-30")
    capsys.readouterr()
    half = _results(_distill(tmp_path / "half", **changes))
    assert half["after"] == found["after"]
    assert "resuming from" in capsys.readouterr().out


def test_an_encoder_is_saved_with_its_patch(tmp_path: Path) -> None:
    out = _distill(tmp_path, **{**_RUNS["encoder"], "max_steps": 2})
    loaded = pospatch.from_pretrained(AutoModel, out / "model")
    assert pospatch.inspect(loaded).method == "rope"


def test_what_every_row_pads_is_not_computed() -> None:
    rows = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    for documents, scheme, longest in [("padded", "one", 3), ("concat", "one", None), ("padded", "ring", None)]:
        run = SimpleNamespace(arguments=SimpleNamespace(data=SimpleNamespace(documents=documents)), scheme=scheme)
        assert DistillRun._longest(run, {"attention_mask": rows}) == longest


def test_a_second_stage_learns_from_the_same_teacher(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = {name: value for name, value in _BERT.items() if name != "model_type"}
    BertModel(BertConfig(**config)).save_pretrained(tmp_path / "base")
    shared = {"head": "encoder", "tokenizer": "bytes"}
    first = _distill(tmp_path / "one", model=str(tmp_path / "base"), patch="alibi", **shared)
    student = {"model": str(first / "model"), "teacher": str(tmp_path / "base"), "patch": None}
    second = _distill(tmp_path / "two", **student, **shared)
    found = _results(second)
    assert found["before"]["base"] == pytest.approx(_results(first)["after"]["base"], rel=1e-3)
    assert found["after"]["base"]["loss"] < found["before"]["base"]["loss"]
    assert pospatch.inspect(pospatch.from_pretrained(AutoModel, second / "model")).method == "alibi"


# what is compared ---------------------------------------------------------------------------------------------------------


def test_distances_are_those_of_their_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 2, 5, 7, generator=generator)
    student, teacher = SimpleNamespace(logits=ours), SimpleNamespace(logits=theirs)
    p, q = (theirs / 3).softmax(-1).double(), (ours / 3).softmax(-1).double()
    wanted = 9 * (p * (p / q).log()).sum(-1).mean()
    found = distance(student, teacher, DistillArguments(match="logits", temperature=3.0))
    assert found == pytest.approx(float(wanted), rel=1e-5)
    student, teacher = SimpleNamespace(last_hidden_state=ours), SimpleNamespace(last_hidden_state=theirs)
    wanted = (ours - theirs).double().square().sum() / theirs.double().square().sum()
    assert distance(student, teacher, DistillArguments(match="hidden")) == pytest.approx(float(wanted), rel=1e-5)
    assert distance(teacher, teacher, DistillArguments(match="hidden")) == 0
    real = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]])
    layers = [SimpleNamespace(hidden_states=[ours * 0, x, ours]) for x in (ours, theirs)]  # a layer apart, one alike
    assert distance(*layers, DistillArguments(match="layers")) == pytest.approx(float(wanted) / 2, rel=1e-5)
    unit = [(x.sum(1) / x.sum(1).norm(dim=-1, keepdim=True)).double() for x in (ours, theirs)]
    embedded = (unit[0] - unit[1]).square().sum(-1).mean()
    assert distance(student, teacher, DistillArguments(match="embedding")) == pytest.approx(float(embedded), rel=1e-5)
    both = distance(student, teacher, DistillArguments(match="hidden+embedding"))
    assert both == pytest.approx(float(wanted + embedded), rel=1e-5)
    for match in ("hidden", "logits", "embedding"):
        cut = [SimpleNamespace(logits=x[:, :3], last_hidden_state=x[:, :3]) for x in (ours, theirs)]
        whole = [SimpleNamespace(logits=x, last_hidden_state=x) for x in (ours, theirs)]
        options = DistillArguments(match=match)  # type: ignore[arg-type]
        assert distance(*whole, options, real) == pytest.approx(float(distance(*cut, options)), rel=1e-5)


def test_every_piece_stands_in_the_frame_and_draws_hang_on_the_step() -> None:
    ids = torch.arange(10, 34).view(2, 12)
    lengths = Lengths(mix=(4, 6, 12), seed=3, head=torch.tensor([1]), tail=torch.tensor([2]))
    found = lengths.cut({"input_ids": ids, "labels": ids}, 4)
    assert found["input_ids"].tolist()[:2] == [[1, 11, 12, 2], [1, 15, 16, 2]]
    assert torch.equal(found["input_ids"], found["labels"])
    assert found["input_ids"].shape == (6, 4)
    drawn = [lengths.at(step) for step in range(60)]
    assert drawn == [lengths.at(step) for step in range(60)]
    assert set(drawn) == {4, 6, 12}
    assert [Lengths(warmup=(4, 6), warmup_steps=2).at(step) for step in range(5)] == [4, 4, 6, 6, None]
    assert Lengths().at(0) is None


def test_a_run_cuts_its_steps_into_the_lengths_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    own = DistillTrainer.compute_loss

    def watched(self: Any, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        if torch.is_grad_enabled():
            seen.append(tuple(inputs["input_ids"].shape))
        return own(self, model, inputs, *rest, **named)

    monkeypatch.setattr(DistillTrainer, "compute_loss", watched)
    _distill(
        tmp_path, **{**_RUNS["encoder, pieces of several lengths"], "max_steps": 12, "gradient_accumulation_steps": 1}
    )
    assert {*seen} == {(24, 8), (16, 12), (8, 24)}


@pytest.mark.parametrize("documents", ["concat", "sliding"])
def test_only_running_text_has_a_frame_around_its_pieces(documents: str) -> None:
    data = SimpleNamespace(documents=documents)
    tune = SimpleNamespace(length_warmup=[], length_warmup_steps=0, length_mix=[4])
    arguments = SimpleNamespace(data=data, tune=tune, training=SimpleNamespace(data_seed=1))
    run = SimpleNamespace(arguments=arguments, built=SimpleNamespace(tokenizer=_framed()))
    pieces = DistillRun._lengths(run).cut({"input_ids": torch.arange(10, 18)[None]}, 4)["input_ids"]
    assert pieces.tolist() == (
        [[0, 11, 12, 2], [0, 15, 16, 2]] if documents == "concat" else [[10, 11, 12, 13], [14, 15, 16, 17]]
    )


def test_masks_hang_on_the_row_alone_and_spare_what_is_fixed() -> None:
    ids = torch.randint(10, 90, (4, 400), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 2
    found = masked(ids, 0.15, 5, torch.tensor([2]))
    assert torch.equal(found[1:2], masked(ids[1:2], 0.15, 5, torch.tensor([2])))
    assert (found[:, 0] == 2).all()
    assert 0.11 < (found == 5).float().mean() < 0.19
    assert torch.equal(found[found != 5], ids[found != 5])


def test_an_encoders_rows_stand_between_its_own_tokens(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    head, tail = frame(BertTokenizer(str(tmp_path / "vocab.txt")))
    assert (head.tolist(), tail.tolist()) == ([2], [3])


@pytest.mark.parametrize("documents", ["concat", "packed", "sliding", "padded"])
def test_a_frame_whose_cls_begins_a_sequence_is_closed_too(documents: str) -> None:
    """As in RoBERTa: 0 before, 2 after, and the first of them is bos and cls at once."""
    tokenizer = _framed()
    head, tail = frame(tokenizer)
    assert (head.tolist(), tail.tolist()) == ([0], [2])
    arguments = DataArguments(sequence_length=6, documents=documents, train_tokens=15)  # type: ignore[arg-type]
    found = rows(tokenizer, "abcd\n\nefghij\n\nklmno", arguments)["input_ids"]
    kept = [row[row != 1].tolist() for row in found]
    said = "".join(chr(token) for row in kept for token in row if token > 2)
    wanted = {"concat": "abcd", "packed": "abcdefghi", "sliding": "abcdefghi", "padded": "abcdefghij"}[documents]
    assert said.startswith(wanted)
    if documents in ("concat", "padded"):
        assert all(row[0] == 0 and row[-1] == 2 for row in kept)
    with pytest.raises(BadOption, match="no room beside the 2 tokens"):
        rows(tokenizer, "abcd", replace(arguments, sequence_length=2, train_tokens=None))


def _framed() -> Any:
    def call(text: str, add_special_tokens: bool = True, verbose: bool = False) -> dict[str, list[int]]:
        ids = [ord(letter) for letter in text]
        return {"input_ids": [0, *ids, 2] if add_special_tokens else ids}

    return type("Framed", (), {
        "__call__": staticmethod(call), "cls_token_id": 0, "bos_token_id": 0, "pad_token_id": 1
    })()  # fmt: skip


# refusals -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": None}, "the student is the teacher"),
        ({"sequence_length": 48}, "the teacher knows 32 tokens"),
        ({"loss_slice": 64}, "leave loss_slice out"),
        ({"model": _BERT, "head": "encoder", "patch": "rope", "match": "logits"}, "needs a head"),
        ({"model": _BERT, "head": "masked", "patch": "alibi"}, "no mask token"),
        ({"match": "hiden"}, "Did you mean 'hidden'"),
        ({"match": "hidden+"}, "match must be"),
        ({"match": "hidden+hidden"}, "names one thing twice"),
        ({"base_length": 48}, "base_length 48: the teacher knows 32"),
        ({"length_mix": [12], "documents": "padded"}, "padded documents would be cut"),
        ({"length_mix": [12], "length_warmup": [12], "length_warmup_steps": 1}, "use one"),
        ({"length_mix": [9]}, "9 does not divide"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"mask_share": 1.0}, "mask_share"),
    ],
)
def test_what_cannot_be_distilled(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadOption, match=message):
        _distill(tmp_path, **changes)


def test_fine_tuning_takes_language_models_alone(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="set head: causal, or distill"):
        run(parse(["--config", str(_config(tmp_path, model=_BERT, head="masked", patch="alibi", sequence_length=24))]))


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("model", [_BERT, _LLAMA], ids=lambda model: model["model_type"])
def test_dropout_is_off_unless_asked_for(tmp_path: Path, model: dict[str, Any], dropout: bool) -> None:
    """The teacher has none. Modules have theirs as a layer or as a number for their attention."""
    noisy = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout"), 0.5)
    settings = {
        "model": {**model, **noisy},
        "head": "encoder",
        "patch": "alibi",
        "dropout": dropout,
        "tuning": "lora",
        "lora_dropout": 0.25,
    }
    arguments = parse(["--config", str(_config(tmp_path, **settings, sequence_length=24))], DistillArguments)
    student = DistillRun(arguments, tmp_path).model.train()
    ids = torch.arange(20)[None] + 40
    same = torch.equal(student(input_ids=ids).last_hidden_state, student(input_ids=ids).last_hidden_state)
    assert same != dropout
    kept = [each.p for name, each in student.named_modules() if isinstance(each, torch.nn.Dropout) and "lora_" in name]
    assert set(kept) == {0.25}


def test_dropout_that_cannot_be_switched_off_is_said(tmp_path: Path) -> None:
    """A Falcon reads its shares from the config at every call."""
    falcon = {"model_type": "falcon", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 259,
              "max_position_embeddings": 32, "hidden_dropout": 0.5, "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
    with pytest.raises(BadOption, match="draws numbers in training"):
        _distill(tmp_path, model=falcon, patch="alibi", max_steps=1)


@pytest.mark.parametrize(
    ("lengths", "scheme", "message"),
    [([8], "ulysses", "leave them out"), ([8, 12], "ring", "a length of 12"), ([8], "ring", None), ([6], "ddp", None)],
)
def test_pieces_must_be_fit_to_be_shared_out(lengths: list[int], scheme: str, message: str | None) -> None:
    accelerator = SimpleNamespace(parallelism_config=SimpleNamespace(cp_size=4))
    if message is None:
        return processes.check_lengths(lengths, scheme, accelerator)
    with pytest.raises(BadOption, match=message):
        processes.check_lengths(lengths, scheme, accelerator)
    return None
