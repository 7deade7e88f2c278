"""The real ALBERT of the rxnmapper package: its table of 512 gives way to another encoding, which it learns from itself.

No molecule of its training is at hand: reactions are put together by rules (tests/reactions.py), and what the unpatched
model says of them is all there is to learn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForMaskedLM, AutoTokenizer

import pospatch
from pospatch.training.arguments import parse
from pospatch.training.distill import DistillRun, masked
from pospatch.training.graft import warm_start
from pospatch.training.options import DistillArguments
from pospatch.training.run import run
from tests.reactions import albert, reactions

pytestmark = pytest.mark.slow
TRAINED, HELD_OUT = 20000, 320


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
    assert _accuracy(_load(folder), tokenizer, texts) > 0.85  # what 0.74 M numbers know of chemistry


@pytest.mark.parametrize("patch", ["rope", "alibi"])
def test_a_reaction_beyond_the_table_is_read(folder: Path, patch: str) -> None:
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)(".".join(reactions(12)).replace(">>", "."))["input_ids"]])
    assert ids.shape[1] > 600
    model = _load(folder)
    with pytest.raises((RuntimeError, IndexError)):
        model(ids)
    pospatch.apply(model, patch)
    assert model(ids).logits.isfinite().all()


def _joined(texts: list[str], count: int) -> list[str]:
    """Reactions side by side: what reacts in all of `count` of them, and what comes of it."""
    parts = [text.split(">>") for text in texts]
    groups = [parts[start : start + count] for start in range(0, len(parts) - count + 1, count)]
    return [">>".join(".".join(side) for side in zip(*group, strict=True)) for group in groups]


@pytest.mark.parametrize(
    ("patch", "match", "steps", "beyond"), [("rope", "logits", 160, 0.8), ("alibi", "layers", 480, 0.6)]
)
def test_it_learns_its_chemistry_back_from_itself(
    folder: Path, tmp_path: Path, patch: str, match: str, steps: int, beyond: float
) -> None:
    """Five minutes of CPU for RoPE, ten for ALiBi, which sees no sides: 0.923 and 0.909 of masked tokens right on reactions
    held out, where the unpatched model has 0.908; and 0.834 and 0.671 beyond the 512 tokens that it could not read."""
    tokenizer, known = AutoTokenizer.from_pretrained(folder), reactions(TRAINED + HELD_OUT)
    held_out = known[TRAINED:]
    (tmp_path / "reactions.txt").write_text("\n".join(known[:TRAINED]))
    settings = {
        "model": str(folder),
        "head": "masked",
        "patch": {"method": patch},
        "match": match,
        "warm_start": True,
        "text": str(tmp_path / "reactions.txt"),
        "documents": "padded",
        "separator": "\n",
        "sequence_length": 112,
        "base_length": 112,
        "target_length": 128,
        "eval_last": 8,
        "tuning": "full",
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 20,
        "max_steps": steps,
        "per_device_train_batch_size": 8,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "output_dir": str(tmp_path / "out"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    start = pospatch.apply(_load(folder), patch)
    warm_start(start)
    assert _accuracy(start, tokenizer, held_out) < 0.35
    run(parse(["--config", str(tmp_path / "recipe.yaml")], DistillArguments), DistillRun)
    learnt = _load(tmp_path / "out" / "model")
    long = _joined(held_out, 10)
    assert min(len(tokenizer(text)["input_ids"]) for text in long) > 512
    teacher, short, further = (
        _accuracy(model, tokenizer, texts)
        for model, texts in ((_load(folder), held_out), (learnt, held_out), (learnt, long))
    )
    print(f"{patch}: {short:.3f} of masked tokens, {further:.3f} beyond 512 tokens; unpatched {teacher:.3f}")
    assert short > teacher - 0.01
    assert further > beyond
