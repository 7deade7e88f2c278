"""Speed and memory of greedy generation after a prompt of a given length."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from pospatch.errors import BadOption
from pospatch.evaluate._head import evaluating
from pospatch.evaluate._limits import refuse_too_long
from pospatch.evaluate._memory import peak_memory
from pospatch.evaluate._plot import draw_speeds as draw
from pospatch.evaluate._progress import bar
from pospatch.evaluate._result import Cells, Result, describe_model
from pospatch.evaluate._tokens import positive_lengths, text_tokens

__all__ = ["PROTOCOLS", "draw", "generation"]

PROTOCOLS = {"greedy": "batch 1, greedy, exactly `new_tokens` tokens; the first one is counted to the prompt"}


def generation(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    lengths: int | Sequence[int],
    new_tokens: int = 32,
    repeats: int = 3,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Result:
    """Tokens a second while the prompt is read and while tokens are generated, the cache's size, the peak of memory.

    Figures are medians over the repeats, after one short run that is not counted. They depend on the machine and on what
    else runs on it, so only figures of one run are compared.

    Args:
        model: any causal language model, patched or not.
        tokenizer: its tokenizer.
        text: the prompt is its beginning.
        lengths: prompt lengths in tokens, at least 8.
        new_tokens: tokens generated, at least 2.
        repeats: runs per length.
        path: where to write the result (.json, .md and .png) and, meanwhile, finished cells to go on from.
        progress: show a bar on stderr.

    Raises:
        BadOption: empty or short text; lengths or counts out of range.
        UnsupportedHost: not a causal language model.
    """
    wanted = positive_lengths(lengths, 8)
    for name, count, least in (("new_tokens", new_tokens, 2), ("repeats", repeats, 1)):
        if not isinstance(count, int) or isinstance(count, bool) or count < least:
            raise BadOption(f"{name} must be an integer of at least {least}, got {count!r}")
    started = time.monotonic()
    tokens = text_tokens(tokenizer, text, wanted[-1])
    refuse_too_long(model, wanted[-1] + new_tokens)
    label, record = describe_model(model)
    options = {"new_tokens": new_tokens, "repeats": repeats, "threads": torch.get_num_threads()}
    run = {"task": "generation", "protocol": "greedy", "model": record, "options": options, "text": tokens.record}
    cells, device = Cells(path, run), model.get_input_embeddings().weight.device
    todo = [(length, trial) for length in wanted for trial in range(repeats) if f"{length}/{trial}" not in cells]
    with bar(f"generation, {label}", len(todo), progress) as advance:
        if todo:
            _run(model, tokenizer, tokens.window(0, wanted[0]).to(device), 2)
        for length, trial in todo:
            cells[f"{length}/{trial}"] = _run(model, tokenizer, tokens.window(0, length).to(device), new_tokens)
            advance()
    rows = [_row(length, [cells[f"{length}/{trial}"] for trial in range(repeats)]) for length in wanted]
    return cells.conclude(
        started,
        label=label,
        lengths=wanted,
        rows=rows,
        n_scored_tokens=0,
        summary={name: rows[-1][name] for name in ("prompt_speed", "decode_speed", "cache_bytes", "peak_bytes")},
    )


class _Clock:
    """A streamer that notes when the prompt and every token arrive."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to do."""


def _run(model: Any, tokenizer: Any, ids: Any, new_tokens: int) -> dict[str, float]:
    clock = _Clock()
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with evaluating(model), peak_memory(ids.device) as peak:
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=pad,
            streamer=clock,
            return_dict_in_generate=True,
        )
    prompt, decode = clock.times[1] - clock.times[0], clock.times[-1] - clock.times[1]
    cache = out.past_key_values
    size = sum(each.nbytes for layer in getattr(cache, "layers", ()) for each in (layer.keys, layer.values))
    return {"prompt": prompt, "token": decode / (new_tokens - 1), "cache": size, "peak": peak()}


def _row(length: int, runs: list[dict[str, float]]) -> dict[str, Any]:
    middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return {
        "length": length,
        "prompt_seconds": round(middle["prompt"], 4),
        "prompt_speed": round(length / middle["prompt"], 2),
        "decode_speed": round(1 / middle["token"], 2),
        "cache_bytes": int(middle["cache"]),
        "peak_bytes": int(middle["peak"]),
    }
