"""LongPPL: perplexity on the tokens that need the long context, as an evaluator model tells them apart."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pospatch.errors import BadOption, UnsupportedHost
from pospatch.evaluate._base import load_model
from pospatch.evaluate._head import SlicedHead, layer_list
from pospatch.evaluate._limits import refuse_too_long
from pospatch.evaluate._plot import draw_curves as draw
from pospatch.evaluate._progress import bar
from pospatch.evaluate._result import Cells, Result, describe_model
from pospatch.evaluate._tokens import Tokens, positive_lengths, text_tokens

__all__ = ["PROTOCOLS", "draw", "longppl"]

PROTOCOLS = {
    "self": "the evaluated model chooses the key tokens itself; models must not be compared by this number",
    "evaluator": "another model chooses the key tokens, the same ones for every evaluated model",
}


def longppl(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    lengths: int | Sequence[int],
    evaluator: Any = None,
    trunc: int = 4096,
    block: int = 1024,
    alpha: float = 2.0,
    beta: float = 2.0,
    slice_size: int = 256,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Result:
    """Perplexity of a causal model on key tokens only: those whose loss the long context lowers much, to a low value.

    key: short_loss - full_loss > alpha and full_loss < beta, both of the evaluator in nats; short_loss is taken with at
    least `trunc` tokens before the token, shared by blocks of `block` tokens; longppl = exp(mean loss on key tokens)

    Source: What is Wrong with Perplexity for Long-context Language Modeling?, arXiv 2410.23771.

    Args:
        model: any causal language model, patched or not.
        tokenizer: its tokenizer.
        text: the text itself (see `pospatch.assets.text`).
        lengths: tokens read, each above `trunc`.
        evaluator: a model, or the folder or repository of one, that shares the tokenizer and reads the longest length;
            None is the evaluated model itself, and the protocol of the result says so.
        trunc: tokens of the short context, 4096 in the paper.
        block: tokens that share a short context, 1024 in the paper.
        alpha: gain in nats above which a token needs the long context, 2 in the paper.
        beta: loss in nats below which it is understood, 2 in the paper.
        slice_size: positions whose logits exist at once.
        path: where to write the result (.json, .md and .png) and, meanwhile, finished cells to go on from.
        progress: show a bar on stderr.

    Raises:
        BadOption: empty or short text, lengths or sizes out of range.
        UnsupportedHost: not a causal language model, or an evaluator with another vocabulary.
    """
    for name, size in (("trunc", trunc), ("block", block), ("slice_size", slice_size)):
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise BadOption(f"{name} must be a positive integer, got {size!r}")
    wanted = positive_lengths(lengths, 8)
    if wanted[0] <= trunc:
        raise BadOption(
            f"lengths must be above trunc={trunc}: a token is judged by what it gains over {trunc} tokens; got {wanted}"
        )
    started = time.monotonic()
    tokens = text_tokens(tokenizer, text, wanted[-1])
    refuse_too_long(model, wanted[-1])
    judge = model if evaluator is None else load_model(evaluator, "AutoModelForCausalLM", model)
    _same_vocabulary(judge, model)
    refuse_too_long(judge, wanted[-1])
    (label, record), (_, judging) = describe_model(model), describe_model(judge)
    protocol = "self" if judge is model else "evaluator"
    options = {"trunc": trunc, "block": block, "alpha": alpha, "beta": beta, "evaluator": judging}
    run = {"task": "longppl", "protocol": protocol, "model": record, "options": options, "text": tokens.record}
    cells, scorer = Cells(path, run), _Scorer(model, judge, tokens, slice_size)
    with bar(f"longppl, {label}", scorer.steps(wanted, trunc, block, cells), progress) as advance:
        if "short" not in cells:
            cells["short"] = scorer.short(wanted[-1], trunc, block, advance)
        short = torch.tensor(cells["short"])
        for length in wanted:
            if str(length) not in cells:
                cells[str(length)] = scorer.row(length, short[: length - trunc], trunc, alpha, beta, advance)
    rows = [{"length": length, **cells[str(length)]} for length in wanted]
    return cells.conclude(
        started,
        label=label,
        lengths=wanted,
        rows=rows,
        n_scored_tokens=sum(row["n"] for row in rows),
        summary={"perplexity": rows[-1]["perplexity"], "key_tokens": rows[-1]["n"]},
    )


class _Scorer:
    """Losses of the evaluated model and of the evaluator on the same tokens."""

    def __init__(self, model: Any, judge: Any, tokens: Tokens, slice_size: int) -> None:
        self.tokens, self.same = tokens, judge is model
        self.head = SlicedHead(model, slice_size)
        self.judge = self.head if self.same else SlicedHead(judge, slice_size)

    def steps(self, lengths: list[int], trunc: int, block: int, cells: Cells) -> int:
        """Layers that are still to be run."""
        own, judging = len(layer_list(self.head.decoder)), len(layer_list(self.judge.decoder))
        blocks = 0 if "short" in cells else -((trunc - lengths[-1]) // block)
        left = sum(str(length) not in cells for length in lengths)
        return blocks * judging + left * (own if self.same else own + judging)

    def short(self, length: int, trunc: int, block: int, advance: Callable[[], None]) -> list[float]:
        """The evaluator's losses of the tokens trunc..length-1, each with trunc to trunc + block tokens before it."""
        pieces = []
        for start in range(trunc, length, block):
            end = min(start + block, length)
            ids = self.tokens.window(start - trunc, end).to(self.judge.device)
            pieces.append(self.judge.losses(ids, trunc - 1, advance))
        return [round(loss, 5) for loss in torch.cat(pieces).tolist()]

    def row(
        self, length: int, short: Tensor, trunc: int, alpha: float, beta: float, advance: Callable[[], None]
    ) -> dict[str, Any]:
        """Figures of one length."""
        ids = self.tokens.window(0, length)
        own = self.head.losses(ids.to(self.head.device), trunc - 1, advance)
        full = own if self.same else self.judge.losses(ids.to(self.judge.device), trunc - 1, advance)
        key = (short - full > alpha) & (full < beta)
        n = int(key.sum())
        loss = own[key].double().mean().item() if n else math.nan
        plain = own.double().mean().item()
        finite = {
            name: math.exp(x) if math.isfinite(x) and x < 700 else None for name, x in (("k", loss), ("a", plain))
        }
        return {
            "loss": loss if math.isfinite(loss) else None,
            "perplexity": finite["k"],
            "n": n,
            "of": len(own),
            "perplexity_of_all": finite["a"],
        }


def _same_vocabulary(judge: Any, model: Any) -> None:
    sizes = [int(each.get_input_embeddings().weight.shape[0]) for each in (judge, model)]
    if sizes[0] != sizes[1]:
        raise UnsupportedHost(
            f"the evaluator has {sizes[0]} token ids and the model {sizes[1]}: they read different tokens, so key tokens "
            "cannot be handed over; give an evaluator with the same tokenizer"
        )
