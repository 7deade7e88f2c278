"""Distillation: the patched model learns to say what the unpatched one says, at lengths that that one was trained for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import set_seed

from pospatch.api import unwrap
from pospatch.errors import BadOption
from pospatch.evaluate._progress import bar
from pospatch.training import data as packing
from pospatch.training import tuning
from pospatch.training.arguments import parse
from pospatch.training.documents import rows
from pospatch.training.options import MATCHES, DistillArguments, TuneArguments
from pospatch.training.run import Run, carry_out, run
from pospatch.training.trainer import PatchTrainer

__all__ = ["DistillRun", "DistillTrainer", "distance", "main", "masked", "pooled"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run from flags."""
    carry_out(lambda: run(parse(argv, DistillArguments), DistillRun))


def distance(student: Any, teacher: Any, arguments: DistillArguments, real: Tensor | None = None) -> Tensor:
    """How far the student's output is from the teacher's, a mean over tokens or texts; `real` (batch, length) is 0 at pads.

    logits: T^2 * KL(softmax(teacher / T) || softmax(student / T)) in nats; hidden: |student - teacher|^2 / |teacher|^2 of the
    last hidden states; layers: the mean of that over the hidden states that the layers give; embedding: |student - teacher|^2
    of the normalised means over tokens. Several are added.
    """
    assert arguments.match is not None  # chosen before the run begins
    each = [_DISTANCES[name](student, teacher, arguments.temperature, real) for name in arguments.match.split("+")]
    return torch.stack(each).sum()


def _logits(student: Any, teacher: Any, temperature: float, real: Tensor | None) -> Tensor:
    ours, theirs = ((output.logits.float() / temperature).log_softmax(-1) for output in (student, teacher))
    each = nn.functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
    return temperature**2 * _mean(each, real)


def _last(student: Any, teacher: Any, temperature: float, real: Tensor | None) -> Tensor:
    return _apart(_hidden(student), _hidden(teacher), real)


def _layers(student: Any, teacher: Any, temperature: float, real: Tensor | None) -> Tensor:
    pairs = list(zip(student.hidden_states, teacher.hidden_states, strict=True))[1:]  # the first is no layer's
    return torch.stack([_apart(*pair, real) for pair in pairs]).mean()


def _embedding(student: Any, teacher: Any, temperature: float, real: Tensor | None) -> Tensor:
    ours, theirs = (pooled(_hidden(output), real) for output in (student, teacher))
    return (ours - theirs).square().sum(-1).mean()


_DISTANCES = dict(zip(MATCHES, (_logits, _last, _layers, _embedding), strict=True))


def pooled(hidden: Tensor, real: Tensor | None) -> Tensor:
    """Unit vectors (batch, width) in float32: the means of hidden states over the tokens that are no pads."""
    hidden = hidden.float()
    whole = hidden.sum(1) if real is None else (hidden * real[..., None]).sum(1)  # a mean's direction is its sum's
    return nn.functional.normalize(whole, dim=-1)


def _apart(ours: Tensor, theirs: Tensor, real: Tensor | None) -> Tensor:
    ours, theirs = ours.float(), theirs.float()
    return _mean((ours - theirs).square().sum(-1), real) / _mean(theirs.square().sum(-1), real)


def _mean(each: Tensor, real: Tensor | None) -> Tensor:
    return each.mean() if real is None else (each * real).sum() / real.sum()


def _hidden(output: Any) -> Tensor:
    """The last hidden states (batch, length, width)."""
    found: Tensor = output.hidden_states[-1] if getattr(output, "hidden_states", None) else output.last_hidden_state
    return found


def masked(ids: Tensor, share: float, mask_token: int, fixed: Tensor) -> Tensor:
    """Ids of which a share is masked; which ones hangs on the row alone, so that a resumed run masks the same. `fixed` ids
    stay."""
    found = ids.clone()
    for row in found:
        draw = torch.Generator().manual_seed(int(row.sum()))
        chosen = (torch.rand(row.shape, generator=draw) < share).to(row.device)
        row[chosen & ~torch.isin(row, fixed.to(row.device))] = mask_token
    return found


class DistillTrainer(PatchTrainer):
    """The loss is the distance from a teacher, which reads the same tokens."""

    def __init__(self, *args: Any, teacher: Any, distill: DistillArguments, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher, self.distill = teacher.to(self.args.device).eval(), distill
        self.loss_is_scaled_for_ga = False  # a mean over the batch, whatever the accumulation

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The distance on a batch; the labels are not read."""
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        extra = {"output_hidden_states": self.distill.compares_states}
        student = model(**inputs, **extra)
        with torch.no_grad():
            teacher = self.teacher(**inputs, **extra)
        loss = distance(student, teacher, self.distill, inputs.get("attention_mask"))
        return (loss, student) if return_outputs else loss


class DistillRun(Run):
    """A run whose measure is agreement with the unpatched model."""

    def _ready_loss(self) -> None:
        """Choose what is compared, and load the teacher beside the student."""
        model, options = self.arguments.model, self.options
        if self.arguments.tune.loss_slice != TuneArguments().loss_slice:
            raise BadOption("distillation compares all logits at once; leave loss_slice out")
        if not model.stack and options.teacher is None:
            raise BadOption("distillation needs a patch or a teacher: without either the student is the teacher")
        if options.match is None:
            options.match = "hidden" if model.head == "encoder" else "logits"
        if "logits" in options.match.split("+") and model.head == "encoder":
            raise BadOption("match: logits needs a head; set match: hidden, or head: masked or causal")
        if not options.dropout:
            tuning.still(self.model)
        set_seed(self.arguments.training.seed)  # weights that are drawn are the student's
        built = tuning.build(replace(model, model=options.teacher or model.model), patched=False)
        self.teacher, known = built.model.requires_grad_(False), built.trained_length
        read = {"sequence_length": self._taught(), "base_length": self.data.record["evaluation"]["base"]}
        for name, length in read.items():
            if known is not None and length > known:
                raise BadOption(f"{name} {length}: the teacher knows {known} tokens, and cannot teach beyond them")

    def _taught(self) -> int:
        """The longest sequence that the teacher reads."""
        return self.arguments.data.sequence_length

    def _check(self) -> None:
        super()._check()
        if self.scheme in ("ring", "ulysses") and "embedding" in str(self.options.match):
            raise BadOption(
                f"match: embedding is a mean over whole texts, of which {self.scheme} gives a process a part"
            )

    def _begin(self) -> None:
        super()._begin()
        if not self.options.dropout:
            self._check_still()

    @torch.no_grad()
    def _check_still(self) -> None:
        """Raise where the student answers twice otherwise: a family may draw what `tuning.still` does not know."""
        trainer = self.trainer
        batch = {name: each.to(trainer.args.device) for name, each in self._batch([self.data.train[0]]).items()}
        batch.pop("labels", None)
        trainer.model.train()
        with torch.random.fork_rng():
            first, second = (trainer.model_wrapped(**batch)[0] for _ in range(2))
        if (first - second).abs().max() > 1e-3 * first.abs().max():  # sums on a GPU may differ a little
            raise BadOption(
                f"{type(unwrap(trainer.model)).__name__} draws numbers in training beside its dropout layers, and they cannot be "
                "switched off here: set them to 0 in its config, or say dropout: true"
            )

    @property
    def options(self) -> DistillArguments:
        """What is compared."""
        found = self.arguments.distill
        assert found is not None  # parsed as such
        return found

    def _load_data(self) -> packing.Data:
        """As for fine-tuning; where documents are padded, whole documents are held out too."""
        data, arguments = super()._load_data(), self.arguments.data
        if arguments.documents == "padded":
            data.windows["base"] = self._held_out(data.record["evaluation"]["base"])
        return data

    def _held_out(self, length: int, **changes: Any) -> Dataset:
        """The first sequences of the text's end, which have no token in common."""
        arguments = replace(self.arguments.data, sequence_length=length, train_tokens=None, **changes)
        _, text = packing.halves(arguments)
        found = rows(self.built.tokenizer, text, arguments)
        first = {name: each[: arguments.eval_windows].numpy() for name, each in found.items()}
        return Dataset.from_dict(first).with_format("torch")

    def _trainer_class(self) -> Callable[..., PatchTrainer]:
        return functools.partial(DistillTrainer, teacher=self.teacher, distill=self.options)

    def _collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return self._batch(examples)

    def _batch(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """What student and teacher read."""
        batch = packing.collate(examples)
        longest = self._longest(batch)
        share, tokenizer = self.options.mask_share, self.built.tokenizer
        if self.arguments.model.head == "masked" and share > 0:
            if tokenizer.mask_token_id is None:
                raise BadOption("this tokenizer has no mask token; set mask_share: 0")
            fixed = torch.tensor(tokenizer.all_special_ids)
            batch["input_ids"] = masked(batch["input_ids"], share, tokenizer.mask_token_id, fixed)
        return {name: value[:, :longest] for name, value in batch.items()}  # nobody reads what all rows pad

    def _longest(self, batch: dict[str, Any]) -> int | None:
        """Tokens of the longest row of padded ones; None where rows must stay whole, as others cut them into equal parts."""
        if self.arguments.data.documents != "padded" or "attention_mask" not in batch:
            return None
        if self.scheme in ("ring", "ulysses"):
            return None
        return int(batch["attention_mask"].sum(1).max())

    @torch.no_grad()
    def _evaluate(self, when: str) -> dict[str, Any]:
        """Distance and agreement on held-out windows of the length that the teacher knows."""
        trainer, model = self.trainer, self.trainer.model
        training = model.training
        model.eval()
        found: list[tuple[float, float]] = []
        compared, windows = 0, self.data.windows["base"]
        with bar(when, len(windows), self.main and not trainer.args.disable_tqdm) as advance:
            for row in windows:
                batch = {
                    name: value.to(trainer.args.device)
                    for name, value in self._batch([row]).items()
                    if name != "labels"
                }
                extra = {"output_hidden_states": self.options.compares_states}
                student, teacher = model(**batch, **extra), self.teacher(**batch, **extra)
                real = batch.get("attention_mask")
                compared += int(batch["input_ids"].numel() if real is None else real.sum())
                measured = distance(student, teacher, self.options, real), self._agreement(student, teacher, real)
                found.append((float(measured[0]), float(measured[1])))
                advance()
        model.train(training)
        loss, agreement = (sum(column) / len(found) for column in zip(*found, strict=True))
        length = self.data.record["evaluation"]["base"]
        self._say(f"{when}, length {length}: distance {loss:.4f}, agreement {agreement:.4f}")
        return {"base": {"length": length, "loss": loss, "agreement": agreement, "n": compared}}

    def _agreement(self, student: Any, teacher: Any, real: Tensor | None) -> Tensor:
        """Share of tokens with the same best word, or the cosine of the two means over tokens."""
        if self.options.compares_states:
            ours, theirs = (pooled(_hidden(output), real) for output in (student, teacher))
            return (ours * theirs).sum(-1).mean()
        return _mean((student.logits.argmax(-1) == teacher.logits.argmax(-1)).float(), real)
