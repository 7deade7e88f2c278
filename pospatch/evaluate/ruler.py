"""RULER's synthetic tasks through lm-eval, on the model in memory, from a local text."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from typing import Any

from pospatch.errors import BadOption, UnknownName, suggest
from pospatch.evaluate._harness import engine, language_model, score
from pospatch.evaluate._limits import refuse_too_long
from pospatch.evaluate._plot import draw_table as draw
from pospatch.evaluate._progress import bar
from pospatch.evaluate._result import Cells, Result, describe_model, versions
from pospatch.evaluate._ruler import LOCAL, SUBTASKS, documents, new_tokens
from pospatch.evaluate._tokens import positive_lengths, text_tokens

__all__ = ["PROTOCOLS", "SUBTASKS", "draw", "ruler"]

PROTOCOLS = {"lm_eval": "lm-eval's templates and scorer (share of references in the answer), needles in a local text"}
_SLACK = 256  # tokens: lm-eval's generators count a prompt without all of its template, and none may be cut


def ruler(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    lengths: int | Sequence[int],
    subtasks: Sequence[str] = ("niah_single_1", "niah_single_2", "niah_multikey_1", "vt"),
    samples: int = 20,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Result:
    """Scores of RULER's synthetic tasks by length; the mean over the subtasks of a length is its RULER score.

    RULER hides needles in essays that must be downloaded; here they are hidden in `text`, so the numbers of the subtasks
    in question must not stand beside published ones (`haystack` in every row says which). RULER's two question-answering
    tasks need downloads and are left out. The generated tokens count towards the length.

    Source: RULER, arXiv 2404.06654; engine: lm-eval, whose version is in the result.

    Args:
        model: any causal language model, patched or not.
        tokenizer: its tokenizer.
        text: the haystack (see `pospatch.assets.text`).
        lengths: lengths in tokens, prompt and answer together, at least 256.
        subtasks: some of SUBTASKS.
        samples: documents per subtask and length, 500 in the paper.
        seed: of the documents.
        path: where to write the result (.json, .md and .png) and, meanwhile, finished cells to go on from.
        progress: show a bar on stderr.

    Raises:
        PospatchError: lm-eval is not installed.
        UnknownName: no such subtask.
        BadOption: empty or short text; lengths or counts out of range, or too short for a subtask.
        UnsupportedHost: lm-eval does not take the model.
    """
    wanted, chosen = positive_lengths(lengths, 256), [subtasks] if isinstance(subtasks, str) else list(subtasks)
    for name in chosen:
        if name not in SUBTASKS:
            raise UnknownName(f"unknown subtask {name!r}.{suggest(str(name), SUBTASKS)} Known: {', '.join(SUBTASKS)}")
    if not chosen or not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
        raise BadOption(f"at least one subtask and one sample are wanted, got {chosen} and samples={samples!r}")
    started = time.monotonic()
    version = engine()
    tokens = text_tokens(tokenizer, text, wanted[-1])
    refuse_too_long(model, wanted[-1])
    label, record = describe_model(model)
    options = {"subtasks": chosen, "samples": samples, "engine": f"lm_eval {version}", "haystack": "local"}
    run = {"task": "ruler", "model": record, "options": options, "seed": seed, "text": tokens.record}
    cells = Cells(path, run)
    todo = [(name, length) for length in wanted for name in chosen if f"{name}/{length}" not in cells]
    made = {each: documents(each[0], tokenizer, each[1], samples, seed, text) for each in todo}
    lm = language_model(model, tokenizer, wanted[-1] + _SLACK)
    with bar(f"ruler, {label}", len(todo), progress) as advance:
        for name, length in todo:
            cells[f"{name}/{length}"] = _scores(lm, name, made[name, length])
            advance()
    rows = [_row(name, length, cells[f"{name}/{length}"]) for length in wanted for name in chosen]
    means = {n: _mean([row["score"] for row in rows if row["length"] == n]) for n in wanted}
    return cells.conclude(
        started,
        protocol="lm_eval",
        label=label,
        lengths=wanted,
        rows=rows,
        n_scored_tokens=0,
        summary={"mean": {str(length): mean for length, mean in means.items()}},
        versions={**versions(), "lm_eval": version},
    )


def _scores(lm: Any, subtask: str, docs: list[dict[str, Any]]) -> list[float]:
    """lm-eval's score of every document: the share of its references that the answer holds."""
    import datasets
    from lm_eval.tasks.ruler.common_utils import postprocess_pred, string_match_all

    def scored(doc: dict[str, Any], answers: list[str]) -> dict[str, float]:
        return {"score": string_match_all(postprocess_pred(answers), [doc["outputs"]])}

    task = {
        "task": f"pospatch_ruler_{subtask}",
        "dataset_path": "",
        "output_type": "generate_until",
        "test_split": "test",
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(docs)},
        "doc_to_text": "{{input}}",
        "doc_to_target": "{{outputs}}",
        "gen_prefix": "{{gen_prefix}}",
        "target_delimiter": "\n\n" if subtask == "cwe" else " ",
        "process_results": scored,
        "metric_list": [{"metric": "score", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {"do_sample": False, "max_gen_toks": new_tokens(subtask), "until": []},
        "metadata": {"version": 1.0},
    }
    return [float(sample["score"]) for sample in score(lm, task)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _row(subtask: str, length: int, scores: list[float]) -> dict[str, Any]:
    mean, n = _mean(scores), len(scores)
    spread = math.sqrt(_mean([(each - mean) ** 2 for each in scores]) / n)
    return {
        "length": length,
        "subtask": subtask,
        "haystack": "local" if subtask in LOCAL else "generated",
        "n": n,
        "score": mean,
        "error": round(spread, 4),
    }
