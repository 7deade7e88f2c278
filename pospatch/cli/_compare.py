"""pospatch compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from pospatch.cli._input import lengths_of, load, made, tokenizer_of
from pospatch.cli._show import out
from pospatch.cli._types import DataType, ModelPath, Text

__all__ = ["compare"]


def compare(
    model: ModelPath,
    methods: Annotated[str, typer.Option(help="Methods, each NAME:OPTION=VALUE:..., separated by commas.")],
    lengths: Annotated[str, typer.Option(help="Lengths in tokens, separated by commas.")],
    text: Text = "kjv",
    k: Annotated[int, typer.Option("--k", help="Tokens scored at the end of each window.")] = 256,
    windows: Annotated[int, typer.Option(help="Windows per length.")] = 4,
    output: Annotated[Path, typer.Option("--output", help="Folder for JSON, PNG, Markdown and HTML.")] = Path(
        "comparison"
    ),
    dtype: DataType = "float32",
) -> None:
    """Measure several methods and the unpatched model on the same text, rank them, and write a report.

    Examples:
    [b]pospatch compare smollm2-135m --methods yarn:factor=2,self_extend:group_size=4 --lengths 2048,16384[/b]
    [b]pospatch compare ./model --methods dca,rope+logn,yarn:factor=4:beta_fast=16 --lengths 4096,8192 --text book.txt[/b]
    """
    from pospatch import assets
    from pospatch.comparison import compare as run
    from pospatch.comparison import parse

    entries, wanted = parse(methods), lengths_of(lengths)
    read = assets.text(text)
    made(output)  # found out now rather than after hours
    tokenizer, loaded = tokenizer_of(model, needed=True), load(model, "AutoModelForCausalLM", dtype)
    content = run(loaded, tokenizer, read, methods=entries, lengths=wanted, k=k, windows=windows, path=output)
    _show(content)
    out.print(f"wrote {output / 'comparison'}.html, .md, .png and .json", soft_wrap=True)


def _show(content: dict[str, Any]) -> None:
    from pospatch.comparison import table

    head, *rows = table(content)
    shown = Table(title="perplexity by length, best first", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in head:  # long words break, a number never loses digits
        wide = name == "method" or name.startswith("change")
        shown.add_column(name.replace("perplexity at ", "").replace("rank", "#"), overflow="fold", no_wrap=not wide,
                         min_width=14 if name == "method" else None)  # fmt: skip
    for row in rows:
        shown.add_row(*(cell.replace("[", "\\[") for cell in row))
    out.print(shown)
