"""The whole path on a real model: inspect, measure beyond the trained length, patch, adapt, save, load it plainly.

Everything is fetched first (once); after that nothing touches the network. One step a file, in the order of `run`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pospatch.demo._finetune import finetune
from pospatch.demo._measure import inspected, passkeys, perplexities
from pospatch.demo._picture import picture
from pospatch.demo._plan import FULL, QUICK, Plan
from pospatch.demo._round_trip import round_trip
from pospatch.demo._stage import Stage
from pospatch.evaluate._plot import save_figure
from pospatch.evaluate._result import versions, write_json

__all__ = ["FULL", "QUICK", "Plan", "run"]


def run(quick: bool = False, output: str | os.PathLike[str] = "demo-output") -> Path:
    """Run the demo and return the folder with demo.json, demo.png, the fine-tuning run and the saved checkpoint.

    Args:
        quick: under 5 minutes on 2 idle cores instead of under 25: one method, one key, fewer training steps.
        output: folder to write to, made where needed.

    Raises:
        AssetError: the model or text is not cached and the registry cannot be reached.
        PospatchError: a step failed; the message says which.
    """
    plan, started = QUICK if quick else FULL, time.monotonic()
    stage = Stage(plan, Path(output), quick)
    report: dict[str, Any] = {
        "quick": quick,
        "text": plan.text,
        "versions": versions(),
        "inspect": inspected(stage),
    }
    curves, keys = perplexities(stage), passkeys(stage)
    tuned = finetune(stage)
    report |= {
        "perplexity": [each.to_dict() for each in curves],
        "passkey": [each.to_dict() for each in keys],
        "finetune": tuned,
        "round_trip": round_trip(stage),
    }
    drawn = save_figure(picture(curves, keys, tuned), stage.folder / "demo.png")
    report["seconds"] = round(time.monotonic() - started, 1)
    written = write_json(stage.folder / "demo.json", report)
    stage.say(
        f"\n[bold]Done[/bold] in {report['seconds'] / 60:.1f} minutes. Look at {drawn}; all numbers are in {written}"
    )
    return stage.folder
