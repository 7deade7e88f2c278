"""A short LoRA run of recipes/finetune.py under `accelerate launch`, as a user would start it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pospatch
from pospatch.demo._plan import Plan
from pospatch.demo._stage import Stage, child_environment
from pospatch.errors import AssetError, PospatchError
from pospatch.evaluate._progress import bar

__all__ = ["command", "finetune", "recipes"]

_EVALUATIONS = 4  # two lengths before, two after
_LAST = 256


def finetune(stage: Stage) -> dict[str, Any]:
    """Adapt the patched model with a few LoRA steps; returns the command and what the run's results.json holds."""
    plan, folder = stage.plan, stage.folder / "finetune"
    stage.head(f"{plan.steps} LoRA steps with yarn, by the recipe; perplexity of the same {_LAST} held-out tokens")
    shutil.rmtree(folder, ignore_errors=True)  # a run of an earlier demo would be resumed
    started = command(recipes(), plan, folder)
    stage.console.print("  " + _readable(started), markup=False, soft_wrap=True)
    with bar("fine-tuning", plan.steps + _EVALUATIONS, True) as advance:
        _follow(started, stage.folder / "finetune.log", advance)
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for name in ("base", "target"):
        before, after = results["before"][name], results["after"][name]
        stage.say(
            f"  with {before['length']:>6} tokens of context: perplexity {_number(before)} before, {_number(after)} after"
        )
    stage.say(f"  {plan.steps} steps of {plan.sequence_length} tokens took {results['seconds']:.0f} s")
    return {"command": _readable(started), "folder": folder.name, **results}


def command(recipes: Path, plan: Plan, output: Path) -> list[str]:
    """The words of the command line that starts the run."""
    flags = {
        "text": plan.text,
        "max_steps": plan.steps,
        "sequence_length": plan.sequence_length,
        "base_length": plan.base_length,
        "target_length": plan.target_length,
        "eval_last": _LAST,
        "disable_tqdm": "true",
        "output_dir": output,
    }
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", str(recipes / "accelerate" / "cpu.yaml"), str(recipes / "finetune.py")]
    chosen = ["--config", str(recipes / "configs" / "smollm2-yarn-16k-lora.yaml")]
    return [*launch, *chosen, *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]


def recipes() -> Path:
    """The folder of the recipes: inside an installed package, or beside it in a checkout.

    Raises:
        AssetError: in neither place.
    """
    package = Path(pospatch.__file__).parent
    for folder in (package / "_recipes", package.parent / "recipes"):
        # Another package may have put a folder of this name beside ours.
        if (folder / "finetune.py").is_file() and (folder / "configs" / "smollm2-yarn-16k-lora.yaml").is_file():
            return folder
    raise AssetError(
        f"the recipes are neither in {package / '_recipes'} nor beside {package}; install pospatch anew, "
        "or run the demo from a checkout of its repository"
    )


def _follow(command: list[str], log: Path, advance: Callable[[], None]) -> None:
    """Run the child; every step and every evaluation that it reports moves the bar, all it says goes to the log."""
    log.unlink(missing_ok=True)
    with log.open("a", encoding="utf-8") as kept:  # the child's stderr goes there too
        child = subprocess.Popen(
            command, env=child_environment(), stdout=subprocess.PIPE, stderr=kept, text=True, bufsize=1
        )
        try:
            for line in child.stdout or ():
                kept.write(line)
                kept.flush()
                if line.startswith(("{'loss'", "before training", "after training")):
                    advance()
        finally:
            ended = child.wait()
    if ended != 0:
        said = log.read_text(encoding="utf-8")
        own = said.rpartition("Traceback (most recent call last)")[0] or said  # the last one is accelerate's own
        tail = "\n".join(own.strip().splitlines()[-12:])
        raise PospatchError(f"the fine-tuning run ended with {ended}; the end of {log}:\n{tail}")


def _readable(command: list[str]) -> str:
    return " ".join(["accelerate launch", *command[3:]])


def _number(found: dict[str, Any]) -> str:
    return "not finite" if found["perplexity"] is None else f"{found['perplexity']:.2f}"
