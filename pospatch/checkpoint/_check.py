"""The proof of an export: a clean process without pospatch loads it, and its logits are compared with the patched model's."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pospatch.engine import _probe
from pospatch.errors import CheckpointError

__all__ = ["Difference", "compare"]

TOKENS = 48
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


class Difference(float):
    """Largest difference of logits, in units of their standard deviation."""

    def __str__(self) -> str:
        return "0 (equal to the bit)" if self == 0 else f"{float(self):.1e} of the logits' spread"


def compare(model: Any, folder: Path, model_class: str, length: int | None) -> Difference:
    """The largest difference between the model here and the checkpoint there, at the start and at the end of its length.

    Raises:
        CheckpointError: the clean process failed, or the difference is beyond rounding.
    """
    inputs = _inputs(model, length)
    here = _here(model, inputs)
    there = _there(folder, model_class, inputs)
    dtype = next(model.parameters()).dtype
    worst = 0.0
    for name, ours in here.items():
        gap = (ours - there[name]).abs().max().item() / max(ours.std().item(), 1e-12)
        if not gap <= TOLERANCE.get(dtype, 1e-5):
            where = "at its first positions" if name == "start" else f"from position {name.removeprefix('from_')} on"
            raise CheckpointError(
                f"the exported checkpoint answers otherwise than the model here, {where}: logits differ by {gap:.1e} of their "
                "spread; nothing was written. This form is not exact for this model; keep it with model.save_pretrained(path)"
            )
        worst = max(worst, gap)
    return Difference(worst)


def _inputs(model: Any, length: int | None) -> dict[str, Tensor]:
    """Random ordinary tokens at the start, and once more at the end of the length where positions can be given."""
    few = _probe.tokens(model).cpu()
    count = min(TOKENS, length or TOKENS)
    pick = torch.randint(0, few.shape[1], (1, count), generator=torch.Generator().manual_seed(0))
    inputs = {"start": few[:, pick[0]].contiguous()}
    if length and length > count and "position_ids" in inspect.signature(type(model).forward).parameters:
        inputs[f"from_{length - count}"] = inputs["start"].clone()
    return inputs


def _here(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    device = _probe.tokens(model).device
    with _probe.quiet(model):
        for name, ids in inputs.items():
            kwargs = {"input_ids": ids.to(device)}
            if model.config.is_encoder_decoder:
                kwargs["decoder_input_ids"] = kwargs["input_ids"]
            if name.startswith("from_"):
                start = int(name.removeprefix("from_"))
                kwargs["position_ids"] = torch.arange(start, start + ids.shape[1], device=device)[None]
            found[name] = model(**kwargs)[0].float().cpu()
    return found


def _there(folder: Path, model_class: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    from safetensors.torch import load_file, save_file

    script = (Path(__file__).parent / "_verify.py").read_text()
    with tempfile.TemporaryDirectory() as room:
        asked, answered = Path(room) / "asked.safetensors", Path(room) / "answered.safetensors"
        save_file(inputs, asked)
        done = subprocess.run(
            [sys.executable, "-P", "-c", script, str(folder), model_class, str(asked), str(answered)],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise CheckpointError(f"plain transformers cannot load the exported checkpoint: {last}")
        return load_file(answered)
