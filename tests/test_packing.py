"""Documents that share a row: read as if each stood alone, for every method; a start-up probe that sees where they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ByT5Tokenizer

from pospatch import registry
from pospatch.engine import _contextual
from pospatch.errors import BadOption, UnsupportedHost
from pospatch.methods._shards import allowed, example
from pospatch.training.arguments import parse
from pospatch.training.data import load
from pospatch.training.documents import rows
from pospatch.training.options import DataArguments
from pospatch.training.probe import check_documents
from pospatch.training.run import run
from tests import tiny
from tests.processes import patched
from tests.test_training import _config, _losses

LENGTHS = (1, 9, 40, 14)  # one of a single token, one beyond the trained length
PACKED = [name for name in registry.names() if "packing" in allowed(registry.method_class(name))]
HOSTS = ("llama", "gpt2")
BYTES = ByT5Tokenizer(extra_ids=0)


def _packed(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return tiny.ids(length=sum(LENGTHS)), positions


@pytest.mark.parametrize("name", PACKED)
@torch.no_grad()
def test_packed_documents_equal_separate_ones(name: str) -> None:
    model = patched(name, HOSTS)
    ids, positions = _packed(model)
    together = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    parts = zip(ids.split(LENGTHS, dim=1), together.split(LENGTHS, dim=1), strict=True)
    for part, found in parts:
        alone = model(input_ids=part, use_cache=False).logits
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)
    check_documents(model, 60)


@pytest.mark.parametrize("name", [n for n in registry.names() if n not in PACKED and example(registry.method_class(n))])
@torch.no_grad()
def test_what_is_refused_would_be_read_otherwise(name: str) -> None:
    model = patched(name, HOSTS)
    ids, positions = _packed(model)
    together = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    last = model(input_ids=ids[:, -LENGTHS[-1] :], use_cache=False).logits
    assert (together[:, -LENGTHS[-1] :] - last).abs().max() > 1e-2


# the probe ----------------------------------------------------------------------------------------------------------------


def test_the_probe_sees_a_family_that_keeps_no_documents_apart() -> None:
    with pytest.raises(UnsupportedHost, match="set documents: sliding or concat"):
        check_documents(tiny.build("opt"), 30)  # it makes a mask of ones, which says that there is one document


def test_the_probe_sees_a_mask_that_is_lost() -> None:
    model = tiny.build("llama")
    check_documents(model, 48)
    own = model.model.forward
    model.model.forward = lambda *args, position_ids=None, **kwargs: own(*args, **kwargs)
    with pytest.raises(UnsupportedHost, match="change of document 0 moves the logits of others"):
        check_documents(model, 48)


def test_the_probe_sees_a_state_that_reaches_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask holds, and a convolution over tokens does not stop at the document's end."""
    model = patched("selective_rope")
    check_documents(model, 48)
    monkeypatch.setattr(_contextual, "_documents", lambda call: None)
    with pytest.raises(UnsupportedHost, match="packed documents see each other"):
        check_documents(model, 48)


def test_the_probe_sees_a_model_that_reads_no_tokens() -> None:
    model = tiny.build("llama")
    torch.nn.init.zeros_(model.lm_head.weight)
    with pytest.raises(UnsupportedHost, match="reads no tokens"):
        check_documents(model, 48)


# rows ---------------------------------------------------------------------------------------------------------------------

TEXT = "abcdefg\n\nhijkl\n\n\n\nmnopqrstuvwxyz\n\n01"


def _rows(**changes: Any) -> dict[str, Any]:
    made = rows(BYTES, TEXT, DataArguments(**{"sequence_length": 6, **changes}))
    made["text"] = ["".join(chr(token - 3) for token in row if token > 2) for row in made["input_ids"].tolist()]
    return made


def test_packed_rows_start_again_at_each_document() -> None:
    made = _rows(documents="packed")
    assert made["text"] == ["abcdef", "ghijkl", "mnopqr", "stuvwx"]
    assert made["position_ids"].tolist()[:2] == [[0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 3, 4]]
    labels = made["labels"].tolist()
    assert [row.index(-100) for row in labels] == [0, 0, 0, 0]
    assert labels[1][1] == -100  # the first token of a document is not foretold from the one before
    assert labels[1][2:] == made["input_ids"].tolist()[1][2:]


def test_sliding_rows_lie_within_documents() -> None:
    assert _rows(documents="sliding")["text"] == ["abcdef", "mnopqr", "stuvwx"]
    assert _rows(documents="sliding", stride=4)["text"] == ["abcdef", "mnopqr", "qrstuv", "uvwxyz"]
    assert _rows(documents="sliding", separator="o")["text"][0] == TEXT[:6]
    with pytest.raises(BadOption, match="the longest has 14"):
        _rows(documents="sliding", sequence_length=15)
    with pytest.raises(BadOption, match="a sequence takes 50"):
        _rows(documents="packed", sequence_length=50)


def test_padded_rows_are_documents_or_pieces_of_them() -> None:
    made = _rows(documents="padded")
    assert made["text"] == ["abcdef", "g", "hijkl", "mnopqr", "stuvwx", "yz", "01"]
    assert made["attention_mask"].sum(dim=1).tolist() == [len(text) for text in made["text"]]
    assert torch.equal(made["labels"] == -100, made["attention_mask"] == 0)


def test_train_tokens_bound_documents_too() -> None:
    assert _rows(documents="packed", train_tokens=15)["text"] == ["abcdef", "ghijkl"]


def test_the_record_says_how_documents_met(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("one two three\n\n" * 200)
    arguments = DataArguments(text=str(tmp_path / "text"), sequence_length=30, documents="packed", eval_last=4)
    data = load(arguments, BYTES, base_length=16, target_length=20)
    assert data.record["documents"] == "packed"
    assert set(data.train.column_names) == {"input_ids", "position_ids", "labels"}


# runs ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{"documents": "packed"}, {"documents": "sliding", "stride": 24}, {"documents": "padded"}]
)
def test_a_run_learns_from_documents(tmp_path: Path, changes: dict[str, Any]) -> None:
    run(parse(["--config", str(_config(tmp_path, patch="alibi", max_steps=4, train_tokens=20000, **changes))]))
    losses = _losses(tmp_path / "out")
    assert losses[-1] < losses[0]


def test_a_run_refuses_lengths_that_packing_hides(tmp_path: Path) -> None:
    config = _config(tmp_path, patch={"method": "dynamic_ntk", "factor": 2.0}, documents="packed")
    with pytest.raises(UnsupportedHost, match="dynamic_ntk cannot be trained under packing: it goes by the longest"):
        run(parse(["--config", str(config)]))


def test_a_run_says_that_no_document_sees_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(parse(["--config", str(_config(tmp_path, documents="packed")), "--dry_run", "true"]))
    assert "packed documents: none sees another" in capsys.readouterr().out
