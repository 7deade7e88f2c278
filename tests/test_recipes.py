"""The recipes as they are shipped: every file is valid, and a run that is killed ends as one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pospatch.training.arguments import parse
from pospatch.training.options import ContrastArguments, DistillArguments

RECIPES = Path(__file__).parent.parent / "recipes"
CONFIGS = sorted((RECIPES / "configs").glob("*.yaml"))
LEARNING = {"distill": DistillArguments, "contrast": ContrastArguments}  # by the end of a file's name
MACHINES = sorted((RECIPES / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_run_is_valid_seeded_and_documented(path: Path) -> None:
    arguments = parse(["--config", str(path), "--use_cpu", "true"], LEARNING.get(path.stem.rpartition("-")[2]))
    assert arguments.model.stack
    assert "seed" in yaml.safe_load(path.read_text())
    assert Path(str(arguments.training.output_dir)) == Path("runs") / path.stem
    assert f"`configs/{path.name}`" in (RECIPES / "README.md").read_text()


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.stem)
def test_a_machine_is_known_to_accelerate_and_documented(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_machines == 1
    assert f"`accelerate/{path.name}`" in (RECIPES / "README.md").read_text()


def start(output: Path) -> subprocess.Popen[bytes]:
    """The tiny run, longer than it is, in a process group of its own."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", RECIPES / "accelerate" / "cpu.yaml"]
    run = [RECIPES / "finetune.py", "--config", RECIPES / "configs" / "tiny-gpt2-rope.yaml", "--output_dir", output]
    flags = ["--max_steps", "200", "--save_steps", "40", "--disable_tqdm", "true"]
    words = [str(word) for word in (*launch, *run, *flags)]
    with output.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)


def losses(output: Path) -> list[tuple[int, float, float]]:
    path = output / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


def weights(output: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(output / "model" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_a_killed_run_ends_as_one_that_was_left_alone(tmp_path: Path, number: signal.Signals) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(whole).wait() == 0
    first = start(broken)
    while len(losses(broken)) < 70:
        assert first.poll() is None
        time.sleep(0.01)
    os.killpg(first.pid, number)
    assert first.wait() != 0
    time.sleep(5)  # accelerate's own process may end before the one that saves
    assert not (broken / "results.json").exists()
    assert start(broken).wait() == 0
    assert "resuming from" in broken.with_suffix(".log").read_text()
    assert losses(broken) == losses(whole)
    ours, wanted = weights(broken), weights(whole)
    assert ours.keys() == wanted.keys()
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)
