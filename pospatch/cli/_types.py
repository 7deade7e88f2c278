"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["AsJson", "AutoClass", "DataType", "ModelPath", "Options", "Text"]

ModelPath = Annotated[
    str,
    typer.Argument(
        help="Folder or Hub repository of a model, or smollm2-135m or minilm-l6 (from the package registry)."
    ),
]
AutoClass = Annotated[str, typer.Option("--auto", help="Auto class that loads the model.")]
Options = Annotated[
    list[str], typer.Option("--option", "-o", help="Option of the method, NAME=VALUE; repeat for more.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DataType = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
Text = Annotated[str, typer.Option("--text", help="A text file or a name (kjv, topics, persuasion).")]
