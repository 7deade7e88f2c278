"""Whether a run may go on from a checkpoint: the same settings, the same text, the same processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from transformers.trainer import TRAINER_STATE_NAME

from pospatch.errors import BadOption
from pospatch.training.arguments import Arguments

__all__ = ["START", "checkpoint", "same_run", "start"]

START = "start.json"  # what was there before the first step
_CHANGEABLE = {  # what a resumed run may have different without computing anything else
    "resume", "num_processes", "parallel", "output_dir", "logging_steps", "save_steps", "save_strategy", "save_total_limit",
    "report_to", "check_memory", "disable_tqdm", "run_name", "push_to_hub", "hub_model_id", "loss_slice", "logging_first_step",
}  # fmt: skip


def checkpoint(arguments: Arguments, folder: Path) -> str | None:
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
        same_run(arguments.config, Path(chosen).parent / "config.yaml")
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


def same_run(config: dict[str, Any], path: Path) -> None:
    """Compare the settings of a run with those in the config.yaml that an earlier one left.

    Raises:
        BadOption: there is none, or others stand in it than in `config`.
    """
    for needed in (path, path.with_name(START)):
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


def start(checkpoint: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """What the run wrote down before its own first step.

    Raises:
        BadOption: it had another number of processes or other text than `facts` say.
    """
    found: dict[str, Any] = json.loads((checkpoint.parent / START).read_text())
    if changed := [name for name, value in facts.items() if found[name] != value]:
        raise BadOption(
            f"{checkpoint} was made with another number of processes or other text: "
            + "; ".join(f"{name}: {found[name]!r} -> {facts[name]!r}" for name in changed)
        )
    return found
