"""One fine-tuning run: build, patch, evaluate, train, evaluate, save; resumes exactly where it stopped."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, set_seed

from pospatch.errors import BadOption, PospatchError
from pospatch.evaluate._limits import reach
from pospatch.evaluate._result import write_json, write_text
from pospatch.training import data as packing
from pospatch.training import disk, graft, measure, plan, probe, processes, resume, tuning
from pospatch.training import loss as slices
from pospatch.training.arguments import Arguments, parse
from pospatch.training.callbacks import MetricsFile, OnBegin, StopOnSignal, TokensBar
from pospatch.training.documents import frame
from pospatch.training.lengths import Lengths
from pospatch.training.trainer import PatchTrainer, save_patch

__all__ = ["Run", "carry_out", "main", "run"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run from flags."""
    carry_out(lambda: run(parse(argv)))


def carry_out(what: Callable[[], dict[str, Any]], interrupted: str = "the same command goes on") -> None:
    """A run as a program: an error of pospatch is one line, an interrupted run ends with 128 + its signal.

    interrupted: what is said of a run that ends at once: what the same command does then.
    """
    try:
        ended = what()
    except PospatchError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    except KeyboardInterrupt as error:  # before the first step, or a second one
        raise SystemExit(f"interrupted; {interrupted}") from error
    if ended.get("interrupted"):
        sys.exit(128 + ended["interrupted"])


def run(arguments: Arguments, kind: type[Run] | None = None) -> dict[str, Any]:
    """Carry a run out; returns what results.json holds.

    Raises:
        PospatchError: the arguments, the patch, the text and the checkpoint do not fit together.
    """
    if arguments.run.print_config:
        print(arguments.to_yaml(), end="")
        return {}
    processes.check_count(arguments.training.world_size, arguments.run.num_processes)
    kind = kind or Run
    if not arguments.run.dry_run:
        return kind(arguments, Path(str(arguments.training.output_dir))).carry_out()
    with tempfile.TemporaryDirectory() as folder:  # the Trainer insists on one
        arguments.training.output_dir = folder
        arguments.training.report_to = []  # a tracker that no training began writes where it stands
        return kind(arguments, Path(folder)).rehearse()


class Run:
    """The steps, in order."""

    def __init__(self, arguments: Arguments, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.begun = time.monotonic()
        self.checkpoint = resume.checkpoint(arguments, folder)
        args = arguments.training
        self.main = args.process_index == 0
        set_seed(args.seed)
        with args.main_process_first(desc="fetching the model and the text"):
            self.built = tuning.build(arguments.model, patched=arguments.tune.graft != "at_step")
            self.data = self._load_data()
        self.use_cache = getattr(self.built.model.config, "use_cache", None)
        set_seed(args.seed)  # the same start whether weights were drawn or loaded
        if arguments.tune.warm_start:
            graft.warm_start(self.built.model)
        self.model = tuning.prepare(self.built.model, arguments.tune, arguments.model.head)
        self.sliced = self._ready_loss()
        self.signals = StopOnSignal()
        self.before: dict[str, Any] = {}
        self.trainer = self._trainer()
        self.scheme = processes.check(self.trainer.accelerator, arguments.run.parallel)
        self._check()

    def carry_out(self) -> dict[str, Any]:
        """All of it."""
        self._say_plan()
        if self.checkpoint is None:
            disk.check(self.arguments, self.model, self.folder)
        else:
            self._say(f"resuming from {self.checkpoint}")
        started = time.monotonic()
        try:
            with disk.watched(self.folder):
                self.trainer.train(resume_from_checkpoint=self.checkpoint)
        finally:
            self.signals.restore()
        seconds = round(time.monotonic() - started, 2)
        state = self.trainer.state
        if self.signals.caught is not None and state.global_step < state.max_steps:
            self._say(
                f"stopped after step {state.global_step} of {state.max_steps}; the same command goes on from here"
            )
            return {"interrupted": self.signals.caught, "steps": state.global_step}
        after = self._evaluate("after training")
        results: dict[str, Any] = {
            "before": self.before,
            "after": after,
            "steps": state.global_step,
            "seconds": seconds,
            "seconds_in_all": round(time.monotonic() - self.begun, 2),
            "processes": self.arguments.training.world_size,
            "parallel": self.scheme,
            "patch": [{"method": name, **options} for name, options in self.arguments.model.stack],
            "data": self.data.record,
            "checkpoint": str(self.folder / "model"),
        }
        with disk.watched(self.folder):
            self._save()
        self._write(write_json, "results.json", results)
        return results

    def rehearse(self) -> dict[str, Any]:
        """Say what would be done, and evaluate at both lengths."""
        self._say_plan()
        self._probe()
        return {"before": self._evaluate("as it starts")}

    # --------------------------------------------------------------------------------------------------------------------

    def _ready_loss(self) -> slices.SlicedLoss | None:
        if self.arguments.model.head != "causal":
            raise BadOption("fine-tuning predicts the next token: set head: causal, or distill (recipes/distill.py)")
        return slices.install(self.model, self.arguments.tune.loss_slice)

    def _load_data(self) -> packing.Data:
        data, built = self.arguments.data, self.built
        base = data.base_length or built.trained_length
        target = data.target_length or built.promised_length or base
        if base is None or target is None:
            raise BadOption("the model's config names no length: set base_length and target_length")
        return packing.load(data, built.tokenizer, base, target)

    def _trainer(self) -> PatchTrainer:
        args, tune = self.arguments.training, self.arguments.tune
        tokens = plan.rows(args) * self.arguments.data.sequence_length
        metrics = MetricsFile(self.folder / "metrics.jsonl", tokens)
        grafts = graft.schedule(tune, self.model, self.arguments.model.stack, self._say, self._probe)
        swap = next((each for each in grafts if isinstance(each, graft.SwapAtStep)), None)
        trainer = self._trainer_class()(
            model=self.model,
            args=args,
            data_collator=self._collate,
            train_dataset=self.data.train,
            eval_dataset=self.data.windows,
            callbacks=[OnBegin(self._begin), *grafts, metrics, self.signals],
        )
        if trainer.pop_callback(ProgressCallback) is not None:  # which a notebook or disable_tqdm replaces
            trainer.add_callback(TokensBar(tokens))
        trainer.lengths, trainer.swap = self._lengths(), swap
        return trainer

    def _lengths(self) -> Lengths:
        tune = self.arguments.tune
        # only sequences cut from running text all stand in a frame
        around = frame(self.built.tokenizer) if self.arguments.data.documents == "concat" else ()
        schedule = tune.length_warmup, tune.length_warmup_steps, tune.length_mix
        return Lengths(*schedule, self.arguments.training.data_seed, *around)

    def _trainer_class(self) -> Callable[..., PatchTrainer]:
        return PatchTrainer

    def _collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return packing.collate(examples)

    def _check(self) -> None:
        """What does not go together, before anything is computed."""
        self._check_lengths()
        coming = self.arguments.model.stack if self.arguments.tune.graft == "at_step" else []
        processes.check_patch(self.model, self.scheme, coming)
        if self.arguments.data.documents == "packed":
            processes.check_patch(self.model, "packing", coming)
            if self.scheme in ("ring", "ulysses"):
                raise BadOption(
                    f"{self.scheme} drops the mask between packed documents; set documents: sliding or concat"
                )
        tune = self.arguments.tune
        if self.trainer.sharded and (tune.tuning != "full" or tune.graft != "swap"):
            raise BadOption(
                f"{self.scheme} shards the weights that LoRA and grafts change: use DDP, or tuning: full and graft: swap"
            )

        if self.scheme != "one" and self.trainer.swap is not None and self.trainer.swap.brings:
            raise BadOption(
                f"graft: at_step under {self.scheme}: the patch brings tensors of its own ({self.trainer.swap.brings[0]}, ...), "
                "whose gradients processes share only from the start; use graft: swap, or one process"
            )

    def _check_lengths(self) -> None:
        data, tune, end = self.arguments.data, self.arguments.tune, reach(self.model)
        longest = max(data.sequence_length, *(self.data.record["evaluation"][name] for name in ("base", "target")))
        if end is not None and longest > end and tune.graft != "at_step":
            raise BadOption(
                f"the model reads at most {end} tokens as it is patched, and sequence_length, base_length or target_length is "
                f"{longest}: shorten it, or give the patch a longer table"
            )
        processes.check_lengths([*tune.length_warmup, *tune.length_mix], self.scheme, self.trainer.accelerator)

    def _begin(self) -> None:
        """Just before the first step, with the model as it will be trained: an evaluation earlier would keep accelerate from
        wrapping it."""
        processes.check_wrapped(self.trainer.model_wrapped, self.scheme)
        self._probe()
        facts = {"processes": self.arguments.training.world_size, "data": self.data.record}
        if self.checkpoint is not None:
            start = resume.start(Path(self.checkpoint), facts)
        else:
            start = {**facts, "before": self._evaluate("before training")}
        self.before = start["before"]
        if self.scheme not in ("ring", "ulysses"):  # whose batches accelerate cuts
            steps = self.trainer.state.max_steps - self.trainer.state.global_step
            self._say(plan.seconds(self.arguments, steps, measure.pace(self.trainer)))
        self._write(write_json, resume.START, start)
        self._write(write_text, "config.yaml", self.arguments.to_yaml())

    def _probe(self) -> None:
        if self.arguments.data.documents == "packed":
            probe.check_documents(self.trainer.model, self.arguments.data.sequence_length)
            self._say("packed documents: none sees another")

    def _evaluate(self, when: str) -> dict[str, Any]:
        return measure.evaluate(self.trainer, self.data, when, self._say)

    def _save(self) -> None:
        """The model as `from_pretrained` reads it, in `model`; with LoRA merged, and the adapter alone in `adapter`."""
        if self.sliced is not None:
            self.sliced.remove()
        trainer, folder = self.trainer, self.folder
        model = trainer.accelerator.unwrap_model(trainer.model)
        whole = trainer.deepspeed if trainer.is_deepspeed_enabled else trainer.model
        state = trainer.accelerator.get_state_dict(whole) if trainer.sharded else None
        if self.arguments.tune.tuning.startswith("lora"):
            if self.main:
                model.save_pretrained(folder / "adapter")
                save_patch(model, folder / "adapter")
            model = model.merge_and_unload()
        if self.use_cache is not None:
            model.config.use_cache = self.use_cache  # the Trainer switches it off
        if self.main:
            model.save_pretrained(folder / "model", state_dict=state)
            self.built.tokenizer.save_pretrained(folder / "model")
        trainer.accelerator.wait_for_everyone()
        self._say(f"saved {folder / 'model'}")

    def _say_plan(self) -> None:
        for line in plan.lines(self.arguments, self.model, self.data.record, self.scheme):
            self._say(line)
        plan.check_memory(self.arguments, self.model, shared_out=self.trainer.sharded)

    def _say(self, line: str) -> None:
        if self.main:
            print(line, flush=True)

    def _write(self, write: Callable[[Path, Any], Path], name: str, content: Any) -> None:
        if self.main:
            write(self.folder / name, content)
