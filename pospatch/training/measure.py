"""Loss and perplexity before and after training, at both lengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pospatch.training.data import Data

__all__ = ["evaluate"]


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
