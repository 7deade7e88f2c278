"""LongBench through lm-eval, on the model in memory."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pospatch.errors import BadOption, PospatchError, UnknownName, suggest
from pospatch.evaluate._harness import engine, language_model, score
from pospatch.evaluate._limits import refuse_too_long
from pospatch.evaluate._plot import draw_table as draw
from pospatch.evaluate._progress import bar
from pospatch.evaluate._result import Cells, Result, describe_model, versions
from pospatch.evaluate._tokens import positive_lengths

__all__ = ["PROTOCOLS", "draw", "longbench"]

PROTOCOLS = {
    "lm_eval": "lm-eval's templates and scorer; prompts that are above `lengths` together with the tokens that their task may "
    "generate are cut at their beginning and counted"
}


def longbench(
    model: Any,
    tokenizer: Any,
    *,
    lengths: int,
    subtasks: Sequence[str] = ("qasper", "hotpotqa", "triviaqa", "passage_retrieval_en"),
    data: str | os.PathLike[str] | None = None,
    samples: int | None = None,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Result:
    """Scores of LongBench's tasks, each with the metric that lm-eval gives it.

    Source: LongBench, arXiv 2308.14508; engine: lm-eval, whose version is in the result.

    Args:
        model: any causal language model, patched or not.
        tokenizer: its tokenizer.
        lengths: the most tokens that the model may read, those that it generates among them; one number. Each row says
            how many tokens of a prompt that leaves (`room`), and how many prompts were longer and lost their beginning
            (`cut`).
        subtasks: LongBench's names, such as qasper or gov_report.
        data: folder of LongBench's own .jsonl files (qasper.jsonl and so on); None downloads them from the Hub.
        samples: the first documents of each subtask; None is all.
        path: where to write the result (.json, .md and .png) and, meanwhile, finished cells to go on from.
        progress: show a bar on stderr.

    Raises:
        PospatchError: lm-eval is not installed.
        UnknownName: no such subtask.
        BadOption: a file of `data` is missing, or a number is out of range.
        AssetError: the data could not be downloaded.
    """
    wanted = positive_lengths(lengths, 256)
    if len(wanted) != 1:
        raise BadOption(f"longbench reads its documents whole: give one number, the most tokens to read, got {wanted}")
    if samples is not None and (not isinstance(samples, int) or isinstance(samples, bool) or samples < 1):
        raise BadOption(f"samples must be a positive integer or None, got {samples!r}")
    started = time.monotonic()
    version = engine()
    chosen = [subtasks] if isinstance(subtasks, str) else list(subtasks)
    tasks = {name: _task(name, data) for name in chosen}
    rooms = {name: _room(name, wanted[0], tasks[name]) for name in chosen}
    refuse_too_long(model, wanted[0])
    label, record = describe_model(model)
    options = {"subtasks": chosen, "samples": samples, "engine": f"lm_eval {version}",
               "data": "hub" if data is None else "local"}  # fmt: skip
    cells = Cells(path, {"task": "longbench", "model": record, "options": options, "lengths": wanted})
    lm = language_model(model, tokenizer, wanted[0])
    todo = [name for name in chosen if name not in cells]
    with bar(f"longbench, {label}", len(todo), progress) as advance:
        for name in todo:
            cells[name] = _figures(score(lm, tasks[name], samples), lm, rooms[name])
            advance()
    return cells.conclude(
        started,
        protocol="lm_eval",
        label=label,
        rows=[{"length": wanted[0], "subtask": name, **cells[name]} for name in chosen],
        n_scored_tokens=0,
        summary={"mean": sum(cells[name]["score"] for name in chosen) / len(chosen)},
        versions={**versions(), "lm_eval": version},
    )


def _task(name: str, data: str | os.PathLike[str] | None) -> dict[str, Any]:
    """lm-eval's own configuration of a subtask, reading local files where a folder is given."""
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(lm_eval.__file__).parent / "tasks" / "longbench"
    known = sorted(each.stem for each in folder.glob("*.yaml") if not each.stem.startswith("_"))
    if name not in known:
        raise UnknownName(f"unknown subtask {name!r}.{suggest(str(name), known)} Known: {', '.join(known)}")
    try:
        config: dict[str, Any] = dict(load_yaml(folder / f"{name}.yaml", resolve_func=True))
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise PospatchError(f"LongBench's scorers need more: {reason} (pip install 'pospatch[lm-eval]')") from error
    if data is None:
        return config
    file = Path(data).expanduser() / f"{name}.jsonl"
    if not file.is_file():
        raise BadOption(f"there is no file {file}; data= is a folder with LongBench's .jsonl files")
    config.pop("dataset_name", None)
    return {**config, "dataset_path": "json", "dataset_kwargs": {"data_files": {config["test_split"]: str(file)}}}


def _room(name: str, longest: int, task: dict[str, Any]) -> int:
    """Tokens of a prompt that HFLM keeps: all but as many as the task may generate."""
    new = int(task["generation_kwargs"]["max_gen_toks"])
    if new >= longest:
        raise BadOption(f"{name} may generate {new} tokens, which count: give lengths above {new}, got {longest}")
    return longest - new


def _figures(samples: list[dict[str, Any]], lm: Any, room: int) -> dict[str, Any]:
    prompts = [sample["arguments"][0][0] for sample in samples]
    cut = sum(lm.tok_batch_encode([prompt])[0].shape[1] > room for prompt in prompts)  # encoded as HFLM does it
    scores = [float(sample["score"]) for sample in samples]
    return {"n": len(scores), "score": sum(scores) / len(scores), "room": room, "cut": cut}
