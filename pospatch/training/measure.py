"""Loss and perplexity before and after training, at both lengths; the pace of this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from pospatch.training.data import Data

__all__ = ["evaluate", "pace"]


def evaluate(trainer: Any, data: Data, when: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Loss and perplexity of the same last tokens at the base and at the target length."""
    found = {}
    record, prefix = data.record["evaluation"], when.split()[0]
    for name, windows in data.windows.items():
        value = float(trainer.evaluate(windows, metric_key_prefix=f"{prefix}_{name}")[f"{prefix}_{name}_loss"])
        finite = math.isfinite(value)
        found[name] = {
            "length": record[name],
            "loss": value if finite else None,
            "perplexity": math.exp(value) if finite and value < 700 else None,
            "n": record["k"] * record["windows"],
        }
        shown = f"loss {value:.4f}, perplexity {math.exp(min(value, 700)):.2f}"
        say(f"{when}, {name} length {record[name]}: {shown} (last {record['k']} tokens)")
    return found


@torch.no_grad()
def pace(trainer: Any) -> float:
    """Seconds that a token of a training batch takes forward, the loss included; of two forwards the second counts."""
    rows = [
        trainer.train_dataset[index] for index in range(min(trainer.args.train_batch_size, len(trainer.train_dataset)))
    ]
    batch = {name: value.to(trainer.args.device) for name, value in trainer.data_collator(rows).items()}
    seconds = 0.0
    with torch.random.fork_rng():
        for _ in range(2):
            began = time.monotonic()
            float(trainer.compute_loss(trainer.model_wrapped, dict(batch)))  # a number is there when the device is done
            seconds = time.monotonic() - began
    return seconds / batch["input_ids"].numel()
