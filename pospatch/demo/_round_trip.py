"""Save the patched model; a process that cannot import pospatch reads it."""

from __future__ import annotations

import json
import sys
from typing import Any

from pospatch.demo._plan import YARN
from pospatch.demo._stage import Stage, run_child
from pospatch.errors import PospatchError

__all__ = ["round_trip"]

_LIMIT = 1e-4
_PROBE = (
    "In the beginning was the Word, and the Word was with God, and the Word was God. The same was in the beginning with"
)
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


def round_trip(stage: Stage) -> dict[str, Any]:
    """Save with yarn and compare the next-token logits of both processes.

    Raises:
        PospatchError: they differ, or the plain load failed.
    """
    import torch

    stage.head("Save with yarn; load in plain transformers, in a process that cannot import pospatch")
    saved = stage.folder / "smollm2-yarn"
    ids = stage.tokenizer(_PROBE, return_tensors="pt").input_ids
    with stage.patched(*YARN), torch.inference_mode():
        stage.model.save_pretrained(saved)
        here = stage.model(ids).logits
    stage.tokenizer.save_pretrained(saved)
    there = torch.tensor(json.loads(run_child([sys.executable, "-c", _PLAIN, str(saved), _PROBE], "the plain load")))
    difference = (there - here[0, -1]).abs().max().item()
    stage.say(f"  largest difference of {len(there)} logits: {difference:g}; the checkpoint is in {saved}")
    if difference > _LIMIT:
        raise PospatchError(
            f"plain transformers read {saved} with logits {difference:g} away; they must agree to {_LIMIT:g}"
        )
    return {"checkpoint": saved.name, "largest_difference": difference, "n_logits": len(there)}
