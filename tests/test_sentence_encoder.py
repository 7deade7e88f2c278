"""The real sentence encoder all-MiniLM-L6-v2, made to read 4096 tokens without training: short texts stay, keys are found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import pospatch
from pospatch import assets, evaluate

pytestmark = pytest.mark.slow


def _load() -> Any:
    return pospatch.from_pretrained(AutoModel, assets.minilm()).eval()


@torch.no_grad()
def test_what_fits_the_table_is_read_as_before_to_the_bit() -> None:
    ids = torch.randint(1000, 30000, (2, 512), generator=torch.Generator().manual_seed(0))
    plain, patched = _load(), pospatch.apply(_load(), "recurrent", factor=8)
    for length in (7, 256, 512):
        assert torch.equal(patched(ids[:, :length]).last_hidden_state, plain(ids[:, :length]).last_hidden_state)


def test_pairs_of_short_texts_stay_as_similar() -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(assets.minilm()), pospatch.apply(_load(), "recurrent", factor=8)
    text = assets.text("kjv")
    result = evaluate.pair_ranking(model, tokenizer, text, lengths=[32, 128], pairs=16, progress=False)
    assert min(row["pearson"] for row in result.rows) > 0.999
