"""What all steps share: the model, the text, the output folder, and how they speak."""

from __future__ import annotations

import math
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from pospatch import assets
from pospatch.demo._plan import Plan
from pospatch.errors import AssetError, PospatchError

__all__ = ["Stage", "child_environment", "run_child"]

_REFERENCE = 1.75  # seconds for the calibration forward on the machine that Plan.minutes was measured on
_CALIBRATION = 1024


class Stage:
    """Says how long it will take, then fetches and loads."""

    def __init__(self, plan: Plan, folder: Path, quick: bool) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.plan, self.folder, self.console = plan, folder, Console(highlight=False)
        self.say(
            f"About [bold]{math.ceil(plan.minutes)} minutes[/bold] on 2 idle cores; the first time also a download of 105 MB."
            + ("" if quick else " A shorter form: pospatch demo --quick, or make demo QUICK=1.")
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AssetError(f"{folder} cannot be made ({error}); give another folder with --output") from error
        self.path, self.text = assets.smollm2(), assets.text(plan.text)
        self.tokenizer = AutoTokenizer.from_pretrained(self.path)
        self.model: Any = AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32).eval()
        self.say(f"On this machine as busy as it is now: about {math.ceil(plan.minutes * self._slowness())} minutes.")

    def say(self, message: str) -> None:
        """One line on stdout."""
        self.console.print(message, soft_wrap=True)

    def head(self, title: str) -> None:
        """The title of a step."""
        self.say(f"\n[bold]{title}[/bold]")

    @contextmanager
    def patched(self, name: str | None, options: dict[str, Any]) -> Iterator[None]:
        """The model with a method on it, and without it again afterwards; None leaves it as it is."""
        import pospatch

        if name is None:
            yield
            return
        pospatch.apply(self.model, name, **options)
        try:
            yield
        finally:
            pospatch.remove(self.model)

    def _slowness(self) -> float:
        """Time of a short forward, in units of what it took where the plan's minutes were measured."""
        import torch

        ids = torch.arange(_CALIBRATION)[None] % self.model.config.vocab_size
        with torch.inference_mode():
            self.model(ids[:, :64])
            begun = time.monotonic()
            self.model(ids, logits_to_keep=1)
        return max((time.monotonic() - begun) / _REFERENCE, 0.2)


def child_environment() -> dict[str, str]:
    """For child processes: offline, and without the tokenizer's warning about forks."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def run_child(command: Sequence[str], what: str) -> str:
    """Run a child process offline and return its stdout.

    Raises:
        PospatchError: it failed; with the end of what it said.
    """
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-12:])
        raise PospatchError(f"{what} ended with {done.returncode}:\n{tail}")
    return done.stdout
