"""What a patch costs within the old length: loss of the patched model against the unpatched one on the same tokens."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pospatch.errors import BadOption
from pospatch.evaluate._base import base_of
from pospatch.evaluate._head import SlicedHead, layer_list
from pospatch.evaluate._limits import refuse_too_long
from pospatch.evaluate._plot import draw_changes as draw
from pospatch.evaluate._progress import bar
from pospatch.evaluate._result import Cells, Result, describe_model
from pospatch.evaluate._tokens import Tokens, positive_lengths, text_tokens

__all__ = ["PROTOCOLS", "draw", "paired", "short_guard"]

PROTOCOLS = {
    "unpatched": "the same weights with the patch taken off, on the same windows in the same run",
    "base": "a model given as base, on the same windows in the same run",
}


def short_guard(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    lengths: int | Sequence[int] | None = None,
    base: Any = None,
    windows: int = 4,
    slice_size: int = 256,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Result:
    """Change of the loss in nats a token that a patch makes at lengths the model knew before.

    The difference is taken token by token, so its error is far below that of either loss. A model whose own weights were
    tuned needs `base`, since taking the patch off does not undo the tuning.

    Args:
        model: a patched causal language model.
        tokenizer: its tokenizer.
        text: the text itself (see `pospatch.assets.text`).
        lengths: window lengths in tokens, at least 8; None is the trained length.
        base: the model to compare with, or the folder or repository of one; None takes the patch off for a while.
        windows: windows per length, one after the other.
        slice_size: positions whose logits exist at once.
        path: where to write the result (.json, .md and .png) and, meanwhile, finished cells to go on from.
        progress: show a bar on stderr.

    Raises:
        BadOption: no patch and no base; empty or short text; lengths or counts out of range.
        UnsupportedHost: not a causal language model.
    """
    if not isinstance(windows, int) or isinstance(windows, bool) or windows < 1:
        raise BadOption(f"windows must be a positive integer, got {windows!r}")
    started = time.monotonic()
    label, record = describe_model(model)
    wanted = positive_lengths(_trained(record) if lengths is None else lengths, 8)
    tokens = text_tokens(tokenizer, text, wanted[-1] * windows)
    refuse_too_long(model, wanted[-1])
    protocol = "unpatched" if base is None else "base"
    options = {"windows": windows, "weighting": "token"}
    with base_of(model, base, "AutoModelForCausalLM") as plain:
        _, reference = describe_model(plain)
        refuse_too_long(plain, wanted[-1])
    options["base"] = reference
    run = {"task": "short_guard", "protocol": protocol, "model": record, "options": options, "text": tokens.record}
    cells = Cells(path, run)
    todo = [(length, index) for length in wanted for index in range(windows) if f"{length}@{index}" not in cells]
    layers = len(layer_list(SlicedHead(model, slice_size).decoder))
    with bar(f"short guard, {label}", 2 * len(todo) * layers, progress) as advance:
        for length in dict.fromkeys(length for length, _ in todo):
            several = [index for each, index in todo if each == length]
            patched = _losses(model, tokens, length, several, slice_size, advance)
            with base_of(model, base, "AutoModelForCausalLM") as plain:
                before = _losses(plain, tokens, length, several, slice_size, advance)
            for index, new, old in zip(several, patched, before, strict=True):
                cells[f"{length}@{index}"] = _sums(new, old)
    rows = [{"length": n, **paired([cells[f"{n}@{index}"] for index in range(windows)])} for n in wanted]
    return cells.conclude(
        started,
        label=label,
        lengths=wanted,
        rows=rows,
        n_scored_tokens=sum(row["n"] for row in rows),
        summary={"change": rows[-1]["change"], "percent": rows[-1]["percent"]},
    )


def _trained(record: dict[str, Any]) -> int:
    length = record["positions"].get("trained_length")
    if not length:
        raise BadOption("the config does not say how long the model was trained for: give lengths")
    return int(length)


def _losses(
    model: Any, tokens: Tokens, length: int, windows: list[int], size: int, advance: Callable[[], None]
) -> list[Tensor]:
    head = SlicedHead(model, size)
    ids = (tokens.window(index * length, (index + 1) * length) for index in windows)
    return [head.losses(each.to(head.device), 0, advance).double() for each in ids]


def _sums(new: Tensor, old: Tensor) -> list[float]:
    change = new - old
    return [len(new), new.sum().item(), old.sum().item(), change.square().sum().item()]


def paired(sums: list[list[float]]) -> dict[str, Any]:
    """Losses after and before, and their difference with its standard error over tokens; null where not finite."""
    n, new, old, square = (float(each) for each in torch.tensor(sums, dtype=torch.float64).sum(0))
    change = (new - old) / n
    if not math.isfinite(square):
        return {"n": int(n), "loss": None, "base_loss": None, "change": None, "error": None, "percent": None}
    error = math.sqrt(max(square / n - change * change, 0.0) / n)
    percent = 100 * (math.exp(change) - 1) if change < 700 else None
    return {"n": int(n), "loss": new / n, "base_loss": old / n, "change": change, "error": error, "percent": percent}
