"""pospatch export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pospatch.cli._input import load, made, patched, tokenizer_of
from pospatch.cli._show import out
from pospatch.cli._types import AutoClass, DataType, ModelPath, Options
from pospatch.errors import BadOption

__all__ = ["export"]


def export(
    model: ModelPath,
    output: Annotated[
        Path, typer.Option("--output", help="Folder for transformers and vLLM, or a .gguf for llama.cpp.")
    ],
    method: Annotated[str | None, typer.Option(help="Method to apply first, or several joined by +.")] = None,
    option: Options = [],  # noqa: B006 - typer reads the default, nothing changes it
    auto: AutoClass = "AutoModelForCausalLM",
    dtype: DataType = "auto",
    verify: Annotated[bool, typer.Option(help="Compare what was written with the model here.")] = True,
) -> None:
    """Write a patched model so that engines without pospatch compute the same, or say why that cannot be.

    Examples: [b]pospatch export smollm2-135m --method yarn -o factor=2 --output ./smollm2-16k[/b],
    [b]pospatch export ./patched --output ./patched.gguf[/b]
    """
    import pospatch

    if option and method is None:
        raise BadOption(f"-o {option[0]} is an option of a method: say which with --method")
    one_file = output.suffix == ".gguf"
    made(output.parent)  # the folder itself comes with a whole export alone
    loaded = load(model, auto, dtype)
    if method is not None:
        patched(loaded, method, option)
    tokenizer = tokenizer_of(model, needed=one_file)
    out.print(str(pospatch.export(loaded, output, tokenizer=tokenizer, verify=verify)), soft_wrap=True, markup=False)
