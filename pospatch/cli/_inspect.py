"""pospatch inspect."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pospatch.cli._input import resolved
from pospatch.cli._types import AsJson

__all__ = ["inspect"]


def inspect(
    path: Annotated[
        str, typer.Argument(help="Folder or Hub repository of a model or an adapter, a .gguf file, or smollm2-135m.")
    ],
    auto: Annotated[
        str | None,
        typer.Option("--auto", help="Auto class whose modules are shown; default the one it was saved from."),
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="Base of an adapter, where it names none at hand.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a repository.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what positions a checkpoint claims, what transformers will use, and where they differ; loads no weights.

    Ends with code 1 where it would be misread.

    Examples: [b]pospatch inspect smollm2-135m[/b], [b]pospatch inspect ./model.gguf --json[/b],
    [b]pospatch inspect ./lora --base ./model[/b]
    """
    from pospatch.checkpoint.doctor import diagnose

    given = {"auto_class": auto, "base": resolved(base), "revision": revision}
    seen = diagnose(resolved(path), **{name: value for name, value in given.items() if value is not None})
    typer.echo(json.dumps(seen.to_dict(), indent=2) if as_json else str(seen))
    if not seen.ok:
        raise typer.Exit(1)
