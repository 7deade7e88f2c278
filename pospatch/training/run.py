"""One fine-tuning run: build, patch, evaluate, train, evaluate, save; resumes exactly where it stopped."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import Trainer, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from pospatch.api import patch_of, unwrap
from pospatch.errors import BadOption, PospatchError
from pospatch.training import data as packing
from pospatch.training import loss as slices
from pospatch.training import tuning
from pospatch.training.arguments import Arguments, parse
from pospatch.training.callbacks import MetricsFile, StopOnSignal

__all__ = ["main", "run"]

_CHANGEABLE = {  # what a resumed run may have different without computing anything else
    "resume", "num_processes", "output_dir", "logging_steps", "save_steps", "save_strategy", "save_total_limit",
    "report_to", "disable_tqdm", "run_name", "push_to_hub", "hub_model_id", "loss_slice", "logging_first_step",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run from flags; prints an error of pospatch as one line and ends with 2, an interrupted run with 128 + its signal."""
    try:
        ended = run(parse(argv))
    except PospatchError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    if ended.get("interrupted"):
        sys.exit(128 + ended["interrupted"])


def run(arguments: Arguments) -> dict[str, Any]:
    """Carry a run out; returns what results.json holds.

    Raises:
        PospatchError: the arguments, the patch, the text and the checkpoint do not fit together.
    """
    if arguments.run.print_config:
        print(arguments.to_yaml(), end="")
        return {}
    _check_processes(arguments)
    if not arguments.run.dry_run:
        return _Run(arguments, Path(str(arguments.training.output_dir))).carry_out()
    with tempfile.TemporaryDirectory() as folder:  # the Trainer insists on one
        arguments.training.output_dir = folder
        return _Run(arguments, Path(folder)).rehearse()


def _check_processes(arguments: Arguments) -> None:
    running, wanted = arguments.training.world_size, arguments.run.num_processes
    if wanted is not None and running != wanted:
        raise BadOption(
            f"num_processes is {wanted} and {running} are running: accelerate starts one process on a CPU whatever its file "
            f"says; use torchrun --nproc_per_node {wanted}, or set num_processes to {running}"
        )


class _Trainer(Trainer):
    """Saves and loads the patch's own tensors beside an adapter or a model."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and not self.is_fsdp_enabled:
            _save_patch(self.model, Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint) / _TENSORS
        if path.is_file() and not self.is_fsdp_enabled:  # whose own checkpoint holds every weight
            tuning.load_tensors(self.model if model is None else model, path)


_TENSORS = "trained_patch.safetensors"
_START = "start.json"  # what was there before the first step


def _save_patch(model: Any, folder: Path) -> None:
    """The patch's tensors by their names in the unwrapped model, and its record: an adapter holds neither."""
    from safetensors.torch import save_file

    own = {name: value.detach().cpu().contiguous() for name, value in tuning.own_tensors(model).items()}
    if own:
        save_file(own, folder / _TENSORS, metadata={"format": "pt"})
    if patch_of(model) is not None:
        (folder / "pospatch.json").write_text(json.dumps(unwrap(model).config.pospatch, indent=2) + "\n")


class _Run:
    """The steps, in order."""

    def __init__(self, arguments: Arguments, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.begun = time.monotonic()
        self.checkpoint = _checkpoint(arguments, folder)
        args = arguments.training
        self.main = args.process_index == 0
        set_seed(args.seed)
        with args.main_process_first(desc="fetching the model and the text"):
            self.built = tuning.build(arguments.model)
            self.data = self._load_data()
        self.use_cache = self.built.model.config.use_cache
        set_seed(args.seed)  # the same start whether weights were drawn or loaded
        self.model = tuning.prepare(self.built.model, arguments.tune)
        self.sliced = slices.install(self.model, arguments.tune.loss_slice)
        self.signals = StopOnSignal()
        self.trainer = self._trainer()
        if self.trainer.is_fsdp_enabled and arguments.tune.tuning != "full":
            raise BadOption("FSDP shards the weights that LoRA is merged into: use DDP, or tuning: full")

    def carry_out(self) -> dict[str, Any]:
        """All of it."""
        self._say_plan()
        before = self._before()
        if self.main:
            (self.folder / "config.yaml").write_text(self.arguments.to_yaml())
        started = time.monotonic()
        try:
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
            "before": before,
            "after": after,
            "steps": state.global_step,
            "seconds": seconds,
            "seconds_in_all": round(time.monotonic() - self.begun, 2),
            "processes": self.arguments.training.world_size,
            "patch": [{"method": name, **options} for name, options in self.arguments.model.stack],
            "data": self.data.record,
            "checkpoint": str(self.folder / "model"),
        }
        self._save()
        self._write("results.json", results)
        return results

    def rehearse(self) -> dict[str, Any]:
        """Say what would be done, and evaluate at both lengths."""
        self._say_plan()
        return {"before": self._evaluate("as it starts")}

    # --------------------------------------------------------------------------------------------------------------------

    def _load_data(self) -> packing.Data:
        data, built = self.arguments.data, self.built
        base = data.base_length or built.trained_length
        target = data.target_length or built.promised_length or base
        if base is None or target is None:
            raise BadOption("the model's config names no length: set base_length and target_length")
        return packing.load(data, built.tokenizer, base, target)

    def _trainer(self) -> _Trainer:
        args = self.arguments.training
        accumulated = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        metrics = MetricsFile(self.folder / "metrics.jsonl", accumulated * self.arguments.data.sequence_length)
        return _Trainer(
            model=self.model,
            args=args,
            data_collator=packing.collate,
            train_dataset=self.data.train,
            eval_dataset=self.data.windows,
            callbacks=[metrics, self.signals],
        )

    def _before(self) -> dict[str, Any]:
        """Losses before the first step; a resumed run reads those of its own beginning."""
        facts = {"processes": self.arguments.training.world_size, "data": self.data.record}
        if self.checkpoint is not None:
            start: dict[str, Any] = json.loads((Path(self.checkpoint).parent / _START).read_text())
            if changed := [name for name, value in facts.items() if start[name] != value]:
                raise BadOption(
                    f"{self.checkpoint} was made with another number of processes or other text: "
                    + "; ".join(f"{name}: {start[name]!r} -> {facts[name]!r}" for name in changed)
                )
        else:
            start = {**facts, "before": self._evaluate("before training")}
        self._write(_START, start)
        before: dict[str, Any] = start["before"]
        return before

    def _evaluate(self, when: str) -> dict[str, Any]:
        """Loss and perplexity of the same last tokens at the base and at the target length."""
        found = {}
        record = self.data.record["evaluation"]
        for name, windows in self.data.windows.items():
            loss = self.trainer.evaluate(windows, metric_key_prefix=f"{when.split()[0]}_{name}")
            value = float(loss[f"{when.split()[0]}_{name}_loss"])
            finite = math.isfinite(value)
            found[name] = {
                "length": record[name],
                "loss": value if finite else None,
                "perplexity": math.exp(value) if finite and value < 700 else None,
                "n": record["k"] * record["windows"],
            }
            shown = f"loss {value:.4f}, perplexity {math.exp(min(value, 700)):.2f}"
            self._say(f"{when}, {name} length {record[name]}: {shown} (last {record['k']} tokens)")
        return found

    def _save(self) -> None:
        """The model as `from_pretrained` reads it, in `model`; with LoRA merged, and the adapter alone in `adapter`."""
        if self.sliced is not None:
            self.sliced.remove()
        trainer, folder = self.trainer, self.folder
        model = trainer.accelerator.unwrap_model(trainer.model)
        state = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
        if self.arguments.tune.tuning == "lora":
            if self.main:
                model.save_pretrained(folder / "adapter")
                _save_patch(model, folder / "adapter")
            model = model.merge_and_unload()
        model.config.use_cache = self.use_cache  # the Trainer switches it off
        if self.main:
            model.save_pretrained(folder / "model", state_dict=state)
            self.built.tokenizer.save_pretrained(folder / "model")
        trainer.accelerator.wait_for_everyone()
        self._say(f"saved {folder / 'model'}")

    def _say_plan(self) -> None:
        args, data = self.arguments.training, self.data.record
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        every = sum(p.numel() for p in self.model.parameters())
        stack = [f"{name}({options})" for name, options in self.arguments.model.stack]
        self._say(
            f"processes: {args.world_size} ({args.parallel_mode.value}), device {args.device}, bf16 {bool(args.bf16)}"
        )
        self._say(f"model: {type(unwrap(self.model)).__name__}, patch: {' + '.join(stack) or 'none'}")
        self._say(f"tuning: {self.arguments.tune.tuning}, {trained:,} of {every:,} numbers are trained")
        self._say(
            f"data: {data['text']}, {data['sequences']} sequences of {data['sequence_length']} tokens; a step takes "
            f"{args.train_batch_size * args.gradient_accumulation_steps * args.world_size}"
        )
        if self.checkpoint is not None:
            self._say(f"resuming from {self.checkpoint}")

    def _say(self, line: str) -> None:
        if self.main:
            print(line, flush=True)

    def _write(self, name: str, content: dict[str, Any]) -> None:
        if self.main:
            temporary = self.folder / f".{name}"
            temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
            os.replace(temporary, self.folder / name)


def _checkpoint(arguments: Arguments, folder: Path) -> str | None:
    """The checkpoint to go on from, after checking that it belongs to the same run."""
    resume = arguments.run.resume
    last = _last_whole(folder)
    if resume == "never" and last is not None:
        raise BadOption(f"resume: never, and {folder} holds {Path(last).name}: give another output_dir or delete it")
    if resume in ("auto", "never"):
        chosen = last
    elif Path(resume).is_dir():
        chosen = resume
    else:
        raise BadOption(f"resume must be auto, never or a checkpoint folder, got {resume!r}")
    if chosen is not None:
        _same_run(arguments.config, Path(chosen).parent / "config.yaml")
    return chosen


def _last_whole(folder: Path) -> str | None:
    """The last checkpoint that was written to its end: the Trainer's state is its last file, and no JSON where a kill cut it."""
    found = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    for path in sorted(
        (path for path, step in found.items() if step.isdigit()), key=lambda p: int(found[p]), reverse=True
    ):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text())
        except (OSError, ValueError):
            continue
        return str(path)
    return None


def _same_run(config: dict[str, Any], path: Path) -> None:
    for needed in (path, path.with_name(_START)):
        if not needed.is_file():
            raise BadOption(f"{needed} is missing, so it cannot be told whether the checkpoint belongs to this run")
    old = yaml.safe_load(path.read_text())
    changed = [
        f"{name}: {old.get(name)!r} -> {config.get(name)!r}"
        for name in sorted({*old, *config} - _CHANGEABLE)
        if old.get(name) != config.get(name)
    ]
    if changed:
        raise BadOption(
            f"the checkpoint beside {path} was made with other settings ({'; '.join(changed)}): "
            "give another output_dir, or the same settings"
        )
