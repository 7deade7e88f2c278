"""The real ALBERT of the rxnmapper package: its table of 512 gives way to another encoding, which it learns from itself.

No molecule of its training is at hand: reactions are put together by rules (tests/reactions.py), and what the unpatched
model says of them is all there is to learn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

import pospatch
from pospatch.training.distill import masked
from tests.reactions import albert, reactions

pytestmark = pytest.mark.slow
HELD_OUT = 160


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return albert(tmp_path_factory.mktemp("albert") / "model")


def _load(folder: Path) -> Any:
    return pospatch.from_pretrained(AutoModelForMaskedLM, folder).eval()


@torch.no_grad()
def _accuracy(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """Share of masked tokens that are the most likely ones, 15 % of each text masked."""
    right = total = 0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        hidden = masked(ids, 0.15, tokenizer.mask_token_id, torch.tensor(tokenizer.all_special_ids))
        where = hidden != ids
        right += int((model(hidden).logits.argmax(-1)[where] == ids[where]).sum())
        total += int(where.sum())
    return right / total


def test_every_reaction_is_read_word_by_word(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = reactions(300)
    assert len(set(texts)) == 300
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert "".join(tokenizer.convert_ids_to_tokens(ids)[1:-1]) == text
    assert _accuracy(_load(folder), tokenizer, texts[:HELD_OUT]) > 0.85  # what 0.74 M numbers know of chemistry


@pytest.mark.parametrize("patch", ["rope", "alibi"])
def test_a_reaction_beyond_the_table_is_read(folder: Path, patch: str) -> None:
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)(".".join(reactions(12)).replace(">>", "."))["input_ids"]])
    assert ids.shape[1] > 600
    model = _load(folder)
    with pytest.raises((RuntimeError, IndexError)):
        model(ids)
    pospatch.apply(model, patch)
    assert model(ids).logits.isfinite().all()
