"""Contrast: what a task is, that documents are found and the encoder stays what it was, exact resume, what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

import pospatch
from pospatch.errors import BadOption
from pospatch.training.contrast import ContrastRun, task
from pospatch.training.options import ContrastArguments
from tests.test_distill import _BERT, _results, _taught

HEAD, TAIL = torch.tensor([1]), torch.tensor([2])


def _contrast(folder: Path, **changes: Any) -> Path:
    settings = {
        "model": {**_BERT, "num_hidden_layers": 1, "initializer_range": 0.05},
        "head": "encoder",
        "patch": {"method": "recurrent", "factor": 4},
        "sequence_length": 32,
        "base_length": 32,
        "target_length": 32,
        "eval_last": 16,
        "eval_windows": 33,
        "query_tokens": [12, 20],
        "tuning": "full",
        "max_steps": 24,
        "save_steps": 12,
        "per_device_train_batch_size": 6,
        "train_tokens": 20000,
        "learning_rate": 3e-3,
        **changes,
    }
    return _taught(folder, ContrastArguments, ContrastRun, **settings)


def test_documents_differ_in_one_passage_each_and_queries_are_parts_of_it() -> None:
    rows = torch.cat([HEAD.expand(5, 1), 10 + torch.arange(5 * 60).view(5, 60), TAIL.expand(5, 1)], dim=1)
    made = task(rows, HEAD, TAIL, ContrastArguments(query_tokens=[8, 20]))
    assert made["input_ids"].shape == (4, 62)
    background = set(rows[0].tolist())
    for index, (document, query, mask) in enumerate(
        zip(made["input_ids"], made["query_ids"], made["query_mask"], strict=True), 1
    ):
        foreign = [token for token in document.tolist() if token not in background]
        assert 8 <= len(foreign) <= 20
        start = rows[index].tolist().index(foreign[0])
        assert rows[index].tolist()[start : start + len(foreign)] == foreign
        kept = query[mask.bool()].tolist()
        assert kept[0] == 1
        assert kept[-1] == 2
        assert set(kept[1:-1]) <= set(foreign)
        assert 0 < len(kept) - 2 < len(foreign)
        own = [token for token in document.tolist() if token in background]
        assert own == [
            *rows[0].tolist()[: len(own) - 1],
            2,
        ]  # the background goes on after the passage, and is cut at its end
    again = task(rows, HEAD, TAIL, ContrastArguments(query_tokens=[8, 20]))
    assert all(torch.equal(made[name], again[name]) for name in made)


def test_documents_are_found_the_encoder_stays_and_a_run_resumes(tmp_path: Path, capsys: Any) -> None:
    whole = _contrast(tmp_path / "whole")
    found = _results(whole)
    assert found["after"]["target"]["n"] == 32
    assert found["after"]["target"]["found"] > found["before"]["target"]["found"] + 0.1
    assert found["before"]["base"]["agreement"] == pytest.approx(
        1, abs=1e-5
    )  # recurrent changes nothing at known lengths
    assert found["after"]["base"]["agreement"] > 0.95
    shutil.copytree(whole, tmp_path / "half" / "out")
    shutil.rmtree(tmp_path / "half" / "out" / "checkpoint-24")
    capsys.readouterr()
    assert _results(_contrast(tmp_path / "half"))["after"] == found["after"]
    assert "resuming from" in capsys.readouterr().out
    loaded = pospatch.from_pretrained(AutoModel, whole / "model")
    assert pospatch.inspect(loaded).method == "recurrent"


def test_a_weight_keeps_the_encoder_nearer_to_what_it_was(tmp_path: Path) -> None:
    free, kept = (
        _results(_contrast(tmp_path / str(weight), keep=weight, max_steps=10))["after"]["base"]["loss"]
        for weight in (0.0, 50.0)
    )
    assert kept < 0.5 * free


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": _BERT, "head": "masked"}, "set head: encoder"),
        ({"documents": "padded"}, "documents: concat"),
        ({"length_mix": [16]}, "documents: concat"),
        ({"per_device_train_batch_size": 2}, "3 or more"),
        ({"eval_windows": 2}, "3 or more"),
        ({"train_tokens": 96}, "has 3 sequences and a batch takes 6"),
        ({"eval_windows": 900, "target_length": 64}, "the held-out text has"),
        ({"base_length": 48}, "base_length 48: the teacher knows 32"),
        ({"sequence_length": 256}, "reads at most 128 tokens"),
        ({"target_length": 256}, "reads at most 128 tokens"),
        ({"query_tokens": [6, 33]}, "no room in 32 tokens"),
        ({"query_tokens": [6]}, "shortest and the longest"),
        ({"query_share": 0.0}, "query_share"),
        ({"scale": 0.0}, "scale must be above 0"),
        ({"sequence_length": 40}, "multiple of 16"),
        ({"patch": None}, "the student is the teacher"),
    ],
)
def test_what_cannot_be_contrasted(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadOption, match=message):
        _contrast(tmp_path, **changes)
