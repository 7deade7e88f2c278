"""The whole path on a real model: inspect, measure beyond the trained length, patch, adapt, save, load it plainly.

Everything is fetched first (once); after that nothing touches the network.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pospatch import assets
from pospatch.errors import AssetError, PospatchError
from pospatch.evaluate import Result, passkey, perplexity
from pospatch.evaluate._plot import draw_perplexity, figure, save_figure
from pospatch.evaluate._result import write_json

__all__ = ["FULL", "QUICK", "Plan", "run"]

_TEXT = "kjv"
_REFERENCE = 1.8  # seconds for the calibration forward (1024 tokens) on the machine the minutes below were measured on
_CALIBRATION = 1024
_PROBE = (
    "In the beginning was the Word, and the Word was with God, and the Word was God. The same was in the beginning with"
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one form of the demo measures; lengths in tokens, minutes on 2 idle cores."""

    minutes: float
    length: int
    bucket: int
    methods: tuple[tuple[str, dict[str, Any]], ...]
    key_length: int
    key_methods: tuple[str, ...]
    depths: tuple[float, ...]
    steps: int


_YARN = ("yarn", {"factor": 2.0})
QUICK = Plan(
    minutes=4.5,
    length=11264,
    bucket=1024,
    methods=(_YARN,),
    key_length=9728,
    key_methods=("yarn",),
    depths=(0.05,),
    steps=4,
)
FULL = Plan(
    minutes=22,
    length=16384,
    bucket=1024,
    methods=(_YARN, ("dynamic_ntk", {"factor": 2.0}), ("ntk", {"factor": 2.0})),
    key_length=10240,
    key_methods=("yarn", "dynamic_ntk"),
    depths=(0.1, 0.5, 0.9),
    steps=12,
)


def run(quick: bool = False, output: str | os.PathLike[str] = "demo-output") -> Path:
    """Run the demo and return the folder with demo.json, demo.png and the saved checkpoint.

    Args:
        quick: under 5 minutes on 2 idle cores instead of under 25: one method, one key, fewer training steps.
        output: folder to write to, made where needed.

    Raises:
        AssetError: the model or text is not cached and the registry cannot be reached.
        PospatchError: a step failed; the message says which.
    """
    plan, folder, started = QUICK if quick else FULL, Path(output), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    demo = _Demo(plan, folder)
    demo.say_how_long(quick)
    seen = demo.inspect()
    report: dict[str, Any] = {
        "quick": quick,
        "text": _TEXT,
        "inspect": seen,
        "perplexity": [each.to_dict() for each in demo.perplexities()],
        "passkey": [each.to_dict() for each in demo.passkeys()],
        "finetune": demo.finetune(),
        "round_trip": demo.round_trip(),
    }
    picture = save_figure(_picture(demo.curves, demo.keys), folder / "demo.png")
    report["seconds"] = round(time.monotonic() - started, 1)
    written = write_json(folder / "demo.json", report)
    demo.say(f"\n[bold]Done[/bold] in {report['seconds'] / 60:.1f} minutes: {picture}, {written}")
    return folder


class _Demo:
    """The steps, in order; each prints what it found."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.plan, self.folder, self.console = plan, folder, Console(highlight=False)
        self.path, self.text = assets.smollm2(), assets.text(_TEXT)
        self.tokenizer = AutoTokenizer.from_pretrained(self.path)
        self.model: Any = AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32).eval()
        self.curves: list[Result] = []
        self.keys: list[Result] = []

    def say(self, message: str) -> None:
        """One line on stdout."""
        self.console.print(message, soft_wrap=True)

    def say_how_long(self, quick: bool) -> None:
        """Time a short forward and scale the known minutes by it."""
        import torch

        ids = torch.arange(_CALIBRATION)[None]
        with torch.inference_mode():
            self.model(ids[:, :64])
            begun = time.monotonic()
            self.model(ids, logits_to_keep=1)
        minutes = self.plan.minutes * max((time.monotonic() - begun) / _REFERENCE, 0.2)
        self.say(
            f"This takes about [bold]{math.ceil(minutes)} minutes[/bold] on this machine, going by a short forward."
        )
        if not quick:
            self.say("A shorter form: `pospatch demo --quick`, or `make demo QUICK=1`.")

    def inspect(self) -> dict[str, Any]:
        """What is there."""
        import pospatch

        self._head("What positional mechanism the model has")
        seen = pospatch.inspect(self.model)
        self.say(str(seen))
        found: dict[str, Any] = json.loads(json.dumps(seen.to_dict(), default=str))
        return found

    def perplexities(self) -> list[Result]:
        """By position, as it is and with each method."""
        plan = self.plan
        self._head(f"Perplexity by position over {plan.length} tokens of one text; the model was trained to 8192")
        for name, options in ((None, {}), *plan.methods):
            with self._patched(name, options):
                result = perplexity(self.model, self.tokenizer, self.text, lengths=plan.length, bucket=plan.bucket)
            self.curves.append(result)
            first, last = result.rows[1]["perplexity"], result.rows[-1]["perplexity"]
            self.say(
                f"  {result.label:<18} tokens {plan.bucket} to {2 * plan.bucket}: {first:6.2f}   "
                f"last {plan.bucket}: {last:8.2f}   ({result.seconds:.0f} s)"
            )
        return self.curves

    def passkeys(self) -> list[Result]:
        """A five-digit key in a context longer than the trained one."""
        plan = self.plan
        self._head(f"A five-digit key hidden in {plan.key_length} tokens")
        chosen = [(name, options) for name, options in plan.methods if name in plan.key_methods]
        for name, options in ((None, {}), *chosen):
            with self._patched(name, options):
                result = passkey(
                    self.model, self.tokenizer, lengths=plan.key_length, depths=plan.depths, trials=1, controls=0
                )
            self.keys.append(result)
            said = ", ".join(
                f"{row['depth']:.0%} deep: {answer['key']} read as {answer['said']!r}"
                for row in result.rows
                for answer in row["answers"]
            )
            self.say(f"  {result.label:<18} {said}   ({result.seconds:.0f} s)")
        return self.keys

    def finetune(self) -> dict[str, Any]:
        """A short LoRA run of recipes/finetune.py under accelerate."""
        raise NotImplementedError

    def round_trip(self) -> dict[str, Any]:
        """Save the patched model; a process that cannot import pospatch loads it and gives the same logits."""
        import torch

        self._head("Save with yarn; load in plain transformers, in a process without pospatch")
        saved = self.folder / "smollm2-yarn"
        ids = self.tokenizer(_PROBE, return_tensors="pt").input_ids
        with self._patched(*_YARN), torch.inference_mode():
            self.model.save_pretrained(saved)
            here = self.model(ids).logits
        self.tokenizer.save_pretrained(saved)
        there = torch.tensor(json.loads(_run([sys.executable, "-c", _PLAIN, str(saved), _PROBE], "the plain load")))
        difference = (there - here[0, -1]).abs().max().item()
        self.say(f"  largest difference of {len(there)} logits: {difference:g}; the checkpoint is in {saved}")
        if difference > 1e-4:
            raise PospatchError(
                f"plain transformers read {saved} with logits {difference:g} away; they must agree to 1e-4"
            )
        return {"checkpoint": saved.name, "largest_difference": difference, "n_logits": len(there)}

    @contextmanager
    def _patched(self, name: str | None, options: dict[str, Any]) -> Iterator[None]:
        import pospatch

        if name is None:
            yield
            return
        pospatch.apply(self.model, name, **options)
        try:
            yield
        finally:
            pospatch.remove(self.model)

    def _head(self, title: str) -> None:
        self.say(f"\n[bold]{title}[/bold]")


# Blocking the import shows that nothing of pospatch is needed to read the checkpoint.
_PLAIN = """
import json, sys
sys.modules["pospatch"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
with torch.inference_mode():
    print(json.dumps(model(**tokenizer(sys.argv[2], return_tensors="pt")).logits[0, -1].tolist()))
"""


def _run(command: Sequence[str], what: str) -> str:
    """Run a child process offline and return its stdout."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-12:])
        raise PospatchError(f"{what} ended with {done.returncode}:\n{tail}")
    return done.stdout


def _recipe() -> Path:
    """recipes/finetune.py: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent
    for folder in (package.parent / "recipes", package / "_recipes"):
        if (folder / "finetune.py").is_file():
            return folder / "finetune.py"
    raise AssetError(f"recipes/finetune.py is neither beside nor in {package}; install pospatch from its repository")


def _picture(curves: Sequence[Result], keys: Sequence[Result]) -> Any:
    sheet = figure(11, 4.4)
    left, right = sheet.subplots(1, 2, width_ratios=[1.7, 1])
    draw_perplexity(left, curves)
    left.set_title("SmolLM2-135M reading the King James Bible, no training", fontsize=10, loc="left")
    _draw_keys(right, keys)
    return sheet


def _draw_keys(axes: Any, results: Sequence[Result]) -> None:
    """Methods down, depths across: whether the key was read."""
    from matplotlib.colors import ListedColormap

    rights = [[row["rate"] for row in result.rows] for result in results]
    axes.imshow(rights, cmap=ListedColormap(["#f6e3d8", "#7cc7ad"]), vmin=0, vmax=1, aspect="auto")
    for down, result in enumerate(results):
        for across, row in enumerate(result.rows):
            answer = row["answers"][0]
            said = answer["said"].strip() or "(nothing)"
            text = f"{answer['key']}\nread" if answer["right"] else f"{answer['key']}\nsaid {said!r}"
            axes.text(across, down, text, ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(results[0].rows)), [f"{row['depth']:.0%} deep" for row in results[0].rows])
    axes.set_yticks(range(len(results)), [result.label for result in results])
    axes.set_title(f"a key hidden in {results[0].lengths[0]} tokens", fontsize=10, loc="left")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
