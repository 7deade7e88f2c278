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


def test_a_name_is_found_in_long_documents() -> None:
    """16 documents of 4096 tokens, about two minutes of CPU; cut to the 512 that the model can read it finds almost none."""
    tokenizer, model = AutoTokenizer.from_pretrained(assets.minilm()), _load()
    wanted = {"lengths": 4096, "queries": 16, "documents": 16, "batch": 1, "progress": False}
    cut = evaluate.encoder_passkey(model, tokenizer, cut=512, **wanted)
    assert cut.rows[0]["rate"] <= 0.4
    whole = evaluate.encoder_passkey(pospatch.apply(model, "recurrent", factor=8), tokenizer, **wanted)
    assert whole.rows[0]["rate"] >= 0.8
