"""The comparison itself: check everything first, measure entry by entry, write all files at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pospatch.comparison._entries import CONTROL, Entry, parse
from pospatch.comparison._figures import figures, ranked
from pospatch.comparison._measure import Windows, measure
from pospatch.comparison._picture import picture
from pospatch.comparison._report import html, markdown
from pospatch.errors import AlreadyPatched, BadOption
from pospatch.evaluate._limits import refuse_beyond_memory
from pospatch.evaluate._plot import save_figure
from pospatch.evaluate._progress import bar
from pospatch.evaluate._result import Cells, describe_model, versions, write_json, write_text
from pospatch.evaluate._tokens import positive_lengths, text_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["compare"]

PROTOCOL = "last_k: windows of every length end at the same tokens, the last k are scored, means over tokens"


def compare(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    methods: str | Sequence[str | Entry],
    lengths: int | Sequence[int],
    k: int = 256,
    windows: int = 4,
    path: str | os.PathLike[str] = "comparison",
    progress: bool = True,
) -> dict[str, Any]:
    """Measure every method and the unpatched model on the same tokens, rank them, write JSON, PNG, Markdown and HTML.

    The rank is by perplexity at the longest length. Beside it stand the change at a length that the model knew (paired,
    token by token, against the control), and time and memory at the longest length as multiples of the control's. An
    interrupted comparison goes on where it was. The model is left unpatched.

    Args:
        model: an unpatched causal language model.
        tokenizer: its tokenizer.
        text: the text itself (see `pospatch.assets.text`).
        methods: entries as `parse` reads them, such as "yarn:factor=2,self_extend:group_size=4".
        lengths: window lengths in tokens, at least 16 each.
        k: tokens scored at the end of each window; at most half of the shortest length is used.
        windows: windows per length.
        path: folder for comparison.json, .png, .md and .html and, meanwhile, for what is finished.
        progress: show a bar on stderr.

    Raises:
        BadOption: nothing to compare, empty or short text, lengths out of range or beyond memory.
        UnknownName, UnsupportedHost: a method that does not exist or does not fit, before anything is measured.
        AlreadyPatched: the model carries a patch.
    """
    from pospatch.api import patch_of

    for name, size in (("k", k), ("windows", windows)):
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise BadOption(f"{name} must be a positive integer, got {size!r}")
    if patch_of(model) is not None:
        raise AlreadyPatched("compare begins with the unpatched model: call pospatch.remove(model) first")
    entries, wanted = [Entry(label=CONTROL), *parse(methods)], positive_lengths(lengths, 16)
    k = min(k, wanted[0] // 2)
    tokens = text_tokens(tokenizer, text, wanted[-1] + k * (windows - 1))
    refuse_beyond_memory(model, wanted[-1])
    for entry in entries[1:]:
        with _patched(model, entry):
            pass
    started, folder = time.monotonic(), Path(path)
    _, record = describe_model(model)
    short = _short(record["positions"].get("trained_length"), wanted)
    plan = Windows(tokens=tokens, lengths=wanted, ends=[wanted[-1] + k * index for index in range(windows)], k=k)
    run = {"model": record, "text": tokens.record, "k": k, "windows": windows, "longest": wanted[-1]}
    cells = Cells(folder / "comparison", run)
    todo = sum(name not in cells for entry in entries for name, *_ in plan.cells(entry))
    with bar("compare", todo, progress) as advance:
        for entry in entries:
            with _patched(model, entry):
                measure(model, entry, plan, cells, advance)
    content = {
        "kind": "comparison",
        "protocol": PROTOCOL,
        "model": record,
        "text": tokens.record,
        "lengths": wanted,
        "options": {"k": k, "windows": windows, "threads": torch.get_num_threads()},
        "entries": ranked(figures(entries, plan, cells, short)),
        "versions": versions(),
        "seconds": round(time.monotonic() - started, 1),
    }
    _write(folder, content)
    cells.finish()
    return content


def _write(folder: Path, content: dict[str, Any]) -> None:
    drawn = save_figure(picture(content), folder / "comparison.png")
    write_text(folder / "comparison.md", markdown(content))
    write_text(folder / "comparison.html", html(content, drawn.read_bytes()))
    write_json(folder / "comparison.json", content)


@contextmanager
def _patched(model: Any, entry: Entry) -> Iterator[None]:
    import pospatch

    if not entry.methods:
        yield
        return
    entry.put_on(model)
    try:
        yield
    finally:
        pospatch.remove(model)


def _short(trained: int | None, lengths: list[int]) -> int:
    """The longest of the lengths that the model knew, else the shortest."""
    return max((length for length in lengths if trained is None or length <= trained), default=lengths[0])
