"""pospatch advise."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pospatch.cli._input import check_folder, resolved
from pospatch.cli._types import AsJson, ModelPath

__all__ = ["advise"]


def advise(
    model: ModelPath,
    length: Annotated[int, typer.Option(help="Tokens to be read.")],
    as_json: AsJson = False,
) -> None:
    """Say which method and options suit a model and a length, why, and what to mind; only the config is read.

    Examples: [b]pospatch advise smollm2-135m --length 32768[/b], [b]pospatch advise ./model --length 131072 --json[/b]
    """
    import pospatch

    check_folder(model)
    advice = pospatch.advise(resolved(model), length)
    typer.echo(json.dumps(advice.to_dict(), indent=2) if as_json else str(advice))
