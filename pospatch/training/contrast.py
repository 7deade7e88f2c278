"""Contrast: a sentence encoder learns to tell long texts apart by one sentence in each, and stays what it was at short ones."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pospatch.errors import BadOption
from pospatch.evaluate._encode import embed
from pospatch.evaluate._progress import bar
from pospatch.training import data as packing
from pospatch.training.arguments import parse
from pospatch.training.distill import DistillRun, DistillTrainer, pooled
from pospatch.training.documents import frame
from pospatch.training.lengths import Lengths
from pospatch.training.options import ContrastArguments
from pospatch.training.run import carry_out, run
from pospatch.training.trainer import PatchTrainer

__all__ = ["ContrastRun", "ContrastTrainer", "main", "task", "vector"]

_KEPT = (16, 32, 64, 128, 256, 512)  # lengths of the pieces on which the encoder stays what it was


def main(argv: Sequence[str] | None = None) -> None:
    """Run from flags."""
    carry_out(lambda: run(parse(argv, ContrastArguments), ContrastRun))


def task(texts: Tensor, head: Tensor, tail: Tensor, options: ContrastArguments) -> dict[str, Tensor]:
    """Documents that differ in one passage each, and a query for every one of them.

    All documents have the first text as their background; into each goes a passage of another one, at a random place. Its query
    is what is left of that passage when tokens are dropped (the inverse cloze task, arXiv 1906.00300, with the negatives as near
    as they can be). What is drawn hangs on the texts alone, so that a resumed run draws the same.

    Args:
        texts: (texts, length), each in its frame of `head` and `tail`.

    Returns:
        input_ids: (texts - 1, length) documents; query_ids, query_mask: (texts - 1, longest); kept_ids: (2, length) texts.
    """
    draw = random.Random(int(texts.sum()))
    shortest, longest = options.query_tokens
    background, *others = texts[:, len(head) : texts.shape[1] - len(tail)]
    documents, queries = [], []
    for other in others:
        size = draw.randint(shortest, longest)
        start, place = draw.randrange(len(other) - size + 1), draw.randrange(len(background) - size + 1)
        passage = other[start : start + size]
        documents.append(torch.cat([head, background[:place], passage, background[place : len(other) - size], tail]))
        left = torch.tensor([draw.random() < options.query_share for _ in passage])
        queries.append(torch.cat([head, passage[left] if left.any() else passage, tail]))
    ids = nn.utils.rnn.pad_sequence(queries, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(each) for each in queries], batch_first=True)
    return {"input_ids": torch.stack(documents), "query_ids": ids, "query_mask": mask, "kept_ids": texts[:2]}


def vector(model: Any, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """The encoder's mean-pooled unit vectors (texts, width); `mask` is 0 at pads."""
    return pooled(model(input_ids=ids, attention_mask=mask).last_hidden_state, mask)


class ContrastTrainer(DistillTrainer):
    """Cross-entropy of which document is whose, both ways, and the weighed distance from the teacher on two texts."""

    distill: ContrastArguments
    kept: Lengths

    def __init__(self, *args: Any, kept: Lengths, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept = kept

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        queries = vector(model, inputs["query_ids"], inputs["query_mask"])
        scores = self.distill.scale * queries @ vector(model, inputs["input_ids"]).T
        own = torch.arange(len(scores), device=scores.device)
        found = (nn.functional.cross_entropy(scores, own) + nn.functional.cross_entropy(scores.T, own)) / 2
        if not self.distill.keep:
            return found
        ids = inputs["kept_ids"]
        lengths = self.kept.drawn(int(ids.sum())), max(self.kept.mix)  # long texts are the first to change
        kept = [self._distance(model, self.kept.cut({"input_ids": ids}, length)) for length in lengths]
        return found + self.distill.keep * torch.stack(kept).mean()

    def _distance(self, model: Any, pieces: dict[str, Tensor]) -> Tensor:
        found: Tensor = super().compute_loss(model, pieces)
        return found


class ContrastRun(DistillRun):
    """A run whose measures are the documents found at the target length, and agreement with the teacher at the base length."""

    def _ready_loss(self) -> None:
        data, tune, model = self.arguments.data, self.arguments.tune, self.arguments.model
        if model.head != "encoder":
            raise BadOption(f"contrast compares sentence vectors: set head: encoder, got {model.head}")
        if self.arguments.training.world_size > 1:
            raise BadOption("contrast compares the documents of one batch, which is one process's: start one")
        if data.documents != "concat" or tune.length_warmup or tune.length_mix:
            raise BadOption("contrast makes its documents from rows of running text: set documents: concat, one length")
        batch, there = self.arguments.training.train_batch_size, len(self.data.train)
        if batch < 3 or data.eval_windows < 3:
            raise BadOption(
                "a background and two passages are the least that can be told apart: set per_device_train_batch_size and "
                f"eval_windows to 3 or more, got {batch} and {data.eval_windows}"
            )
        if there < batch:
            raise BadOption(
                f"the text has {there} sequences and a batch takes {batch}: give more text, or shorter ones"
            )
        self.arguments.training.dataloader_drop_last = True  # what is left over at the end may be too little to compare
        self.options.match = self.options.match or "embedding"
        super()._ready_loss()
        self.head, self.tail = frame(self.built.tokenizer)
        shortest = min(data.sequence_length, self.data.record["evaluation"]["target"])
        if self.options.query_tokens[1] > shortest - len(self.head) - len(self.tail):
            raise BadOption(f"query_tokens {self.options.query_tokens}: a passage has no room in {shortest} tokens")
        self.kept = Lengths(mix=self._pieces(), seed=self.arguments.training.data_seed, head=self.head, tail=self.tail)

    @property
    def options(self) -> ContrastArguments:
        """What is compared."""
        found = self.arguments.distill
        assert isinstance(found, ContrastArguments)  # parsed as such
        return found

    def _load_data(self) -> packing.Data:
        """As for distillation, and held-out documents that have nothing in common."""
        data, wanted = super()._load_data(), self.arguments.data.eval_windows
        length = data.record["evaluation"]["target"]
        found = self._held_out(length, documents="concat")
        if len(found) < wanted:
            raise BadOption(
                f"the held-out text has {len(found)} documents of {length} tokens and eval_windows is {wanted}: give more text, "
                "raise held_out, or lower one of the two"
            )
        data.windows["target"] = found
        return data

    def _taught(self) -> int:
        return max(self._pieces())

    def _pieces(self) -> list[int]:
        length = self.arguments.data.sequence_length
        known = min(length, self.data.record["evaluation"]["base"])
        found = [each for each in _KEPT if each <= known and length % each == 0]
        if not found:
            raise BadOption(f"sequence_length {length} must be a multiple of 16, and base_length {known} at least 16")
        return found

    def _trainer_class(self) -> Callable[..., PatchTrainer]:
        return functools.partial(ContrastTrainer, teacher=self.teacher, distill=self.options, kept=self.kept)

    def _collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return task(packing.collate(examples)["input_ids"], self.head, self.tail, self.options)

    def _evaluate(self, when: str) -> dict[str, Any]:
        """Agreement at the base length, and which of the held-out documents of the target length are found."""
        found = super()._evaluate(when)
        model, quiet = self.trainer.model, self.trainer.args.disable_tqdm
        held = torch.stack([row["input_ids"] for row in self.data.windows["target"]])
        asked = task(held, self.head, self.tail, self.options)
        rows = zip(asked["query_ids"], asked["query_mask"].bool(), strict=True)
        with bar(when, len(held) - 1, self.main and not quiet) as advance:
            documents = embed(model, asked["input_ids"].tolist(), "mean", 1, advance)  # one at a time: they may be long
        queries = embed(model, [ids[real].tolist() for ids, real in rows], "mean", 1)
        best, length = (queries @ documents.T).argmax(1).tolist(), held.shape[1]
        share = sum(place == own for own, place in enumerate(best)) / len(best)
        self._say(f"{when}, length {length}: {share:.2f} of {len(best)} documents found")
        return {**found, "target": {"length": length, "found": share, "n": len(best)}}
