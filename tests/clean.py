"""A fresh process that loads saved checkpoints and says what it got: with pospatch imported, in a world where it is not
installed, or trusting the checkpoint's own code to import it.

    python -m tests.clean JOBS RESULTS with|without|trusting

JOBS is a JSON list of {"path", "classes", "ids" or "pixels", "load"}; RESULTS becomes a list of {class name: outcome}, an outcome
being the path of the logits or {"error": type name, "message": text}. One process does all jobs: the imports cost seconds.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent


def run(jobs: list[dict[str, Any]], folder: Path, kind: str) -> list[dict[str, Any]]:
    """Do the jobs in a new process; returns its results, logits as tensors."""
    asked, answered = folder / f"{kind}.json", folder / f"{kind}-results.json"
    asked.write_text(json.dumps(jobs))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-m", "tests.clean", str(asked), str(answered), kind],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(answered.read_text())
    return [
        {name: torch.load(got) if isinstance(got, str) else got for name, got in result.items()} for result in results
    ]


def _outcome(job: dict[str, Any], name: str, kept: Path) -> Any:
    import transformers

    load = getattr(transformers, name).from_pretrained
    if job.get("load") == "trusting":
        load = functools.partial(load, trust_remote_code=True)
    if job.get("load") == "pospatch":
        import pospatch

        load = lambda path: pospatch.from_pretrained(getattr(transformers, name), path)  # noqa: E731
    try:
        model = load(job["path"])
        with torch.no_grad():
            torch.save(model(**_inputs(job, model.config.is_encoder_decoder))[0], kept)
    except Exception as error:  # noqa: BLE001  the outcome is what is asked for
        return {"error": type(error).__name__, "message": str(error)}
    return str(kept)


def _inputs(job: dict[str, Any], paired: bool) -> dict[str, torch.Tensor]:
    if "pixels" in job:
        return {"pixel_values": torch.rand(job["pixels"], generator=torch.Generator().manual_seed(0))}
    ids = torch.tensor(job["ids"])
    return {"input_ids": ids, **({"decoder_input_ids": ids} if paired else {})}


def _main(asked: str, answered: str, kind: str) -> None:
    if kind == "without":
        sys.modules["pospatch"] = None  # type: ignore[assignment]
    elif kind == "with":
        import pospatch  # noqa: F401
    warnings.simplefilter("ignore")
    results = []
    for number, job in enumerate(json.loads(Path(asked).read_text())):
        kept = f"{answered}.{number}"
        results.append({name: _outcome(job, name, Path(f"{kept}.{name}.pt")) for name in job["classes"]})
    Path(answered).write_text(json.dumps(results))


if __name__ == "__main__":
    _main(*sys.argv[1:])
