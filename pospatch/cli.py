"""The command line: inspect, methods, apply, evaluate, demo; every command shows examples under --help."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pospatch.errors import BadOption, PospatchError
from pospatch.inspection import catalogue_markdown

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Change how an existing transformers model knows the order of its tokens.",
)
out = Console(highlight=False)

ModelPath = Annotated[str, typer.Argument(help="Folder or Hub repository of a model.")]
AutoClass = Annotated[str, typer.Option("--auto", help="Auto class that loads the model.")]
Options = Annotated[
    list[str], typer.Option("--option", "-o", help="Option of the method, NAME=VALUE; repeat for more.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DataType = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]


@app.command()
def inspect(model: ModelPath, auto: AutoClass = "AutoModel", as_json: AsJson = False) -> None:
    """Show what positional mechanism a model has, where, and how long it was trained for.

    Example: [b]pospatch inspect ./smollm2 --auto AutoModelForCausalLM[/b]
    """
    import pospatch

    seen = pospatch.inspect(_load(model, auto, "auto"))
    typer.echo(json.dumps(seen.to_dict(), indent=2) if as_json else str(seen))


@app.command()
def methods(
    name_or_model: Annotated[str | None, typer.Argument(help="A method, or a model to say what fits it.")] = None,
    auto: AutoClass = "AutoModel",
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the catalogue as the README has it.")] = False,
) -> None:
    """List the methods, describe one, or say which fit a model and why the others do not.

    Examples: [b]pospatch methods[/b], [b]pospatch methods yarn[/b], [b]pospatch methods ./smollm2[/b]
    """
    import pospatch
    from pospatch import registry

    if name_or_model in registry.names():
        return _describe(str(name_or_model))
    loaded = _load(name_or_model, auto, "auto") if name_or_model else None
    catalogue = pospatch.methods(loaded)
    if markdown:
        return typer.echo(catalogue_markdown(), nl=False)
    if as_json:
        return typer.echo(json.dumps(catalogue, indent=2))
    table = Table(title="methods" if loaded is None else f"methods for {name_or_model}")
    for column in ("method", "family", "site", "needs", "source" if loaded is None else "fits"):
        table.add_column(column, overflow="fold")
    for name, entry in catalogue.items():
        last = entry["source"] if loaded is None else "yes" if entry["fits"] else f"no: {entry['reason']}"
        table.add_row(name, entry["family"], entry["site"], entry["needs"], last)
    out.print(table)


@app.command()
def apply(
    model: ModelPath,
    method: Annotated[str, typer.Argument(help="A method, or several joined by +: rope+yarn.")],
    output: Annotated[Path, typer.Option("--output", help="Folder for the patched checkpoint.")],
    option: Options = [],  # noqa: B006 - typer reads the default, nothing changes it
    auto: AutoClass = "AutoModelForCausalLM",
    dtype: DataType = "auto",
) -> None:
    """Patch a model and save it; the tokenizer is copied along.

    Example: [b]pospatch apply ./smollm2 yarn -o factor=2 --output ./smollm2-16k[/b]
    """
    import pospatch

    patched = pospatch.apply(
        _load(model, auto, dtype), method.split("+") if "+" in method else method, **_options(option)
    )
    patched.save_pretrained(output)
    tokenizer = _tokenizer(model)
    if tokenizer is not None:
        tokenizer.save_pretrained(output)
    out.print(str(pospatch.inspect(patched)))
    native = patched.config.pospatch["native"]
    out.print(
        f"saved to {output}: " + ("plain transformers loads it" if native else "loads where pospatch is imported")
    )


@app.command()
def evaluate(
    model: ModelPath,
    task: Annotated[str, typer.Argument(help="perplexity or passkey.")],
    lengths: Annotated[str, typer.Option(help="Lengths in tokens, separated by commas.")],
    text: Annotated[
        str, typer.Option(help="A text file, or a text of pospatch.assets (kjv, topics, persuasion).")
    ] = "kjv",
    method: Annotated[str | None, typer.Option(help="Method to apply first, or several joined by +.")] = None,
    option: Options = [],  # noqa: B006
    set_: Annotated[list[str], typer.Option("--set", help="Option of the task, NAME=VALUE.")] = [],  # noqa: B006
    output: Annotated[Path, typer.Option("--output", help="Result path; writes .json and .png.")] = Path("evaluation"),
    dtype: DataType = "float32",
) -> None:
    """Measure a model on long context; writes JSON and a picture side by side and goes on where it was interrupted.

    Examples:
    [b]pospatch evaluate ./smollm2 perplexity --lengths 16384 --method yarn -o factor=2[/b]
    [b]pospatch evaluate ./smollm2 passkey --lengths 4096,10240 --set depths=3 --set trials=1[/b]
    """
    import pospatch
    from pospatch import assets
    from pospatch import evaluate as tasks

    loaded = _load(model, "AutoModelForCausalLM", dtype)
    if method is not None:
        pospatch.apply(loaded, method.split("+") if "+" in method else method, **_options(option))
    keywords: dict[str, Any] = {"lengths": [int(item) for item in lengths.split(",")], "path": output, **_options(set_)}
    if task == "perplexity":
        keywords["text"] = assets.text(text)
    result = tasks.run(task, loaded, _tokenizer(model), **keywords)
    result.save(output)
    _rows(result.rows)
    out.print(f"wrote {output.with_suffix('.json')} and {output.with_suffix('.png')}")


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Under 5 minutes on 2 cores instead of under 25.")] = False,
    output: Annotated[Path, typer.Option("--output", help="Folder to write to.")] = Path("demo-output"),
) -> None:
    """Read a long text beyond a real model's range: inspect, measure, patch, adapt, save, load in plain transformers.

    Example: [b]pospatch demo --quick[/b]
    """
    from pospatch import demo as run_demo

    run_demo.run(quick=quick, output=output)


def main() -> None:
    """Entry point: errors of pospatch are shown as one message, without a traceback."""
    try:
        app()
    except PospatchError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]{type(error).__name__}[/red]: ", end="")
        typer.echo(str(error), err=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; results written so far stay, and the same command goes on from them", err=True)
        raise SystemExit(130) from None


def _load(path: str | None, auto: str, dtype: str) -> Any:
    import transformers

    import pospatch

    auto_class = getattr(transformers, auto, None)
    if auto_class is None or not auto.startswith("Auto"):
        raise BadOption(f"--auto={auto} must name an Auto class of transformers, e.g. AutoModelForCausalLM")
    return pospatch.from_pretrained(auto_class, path, dtype=dtype).eval()


def _tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        typer.echo(f"no tokenizer at {path} ({type(error).__name__}); only the model is used", err=True)
        return None


def _options(items: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs; a value is read as a Python literal where it is one, else as a word."""
    options: dict[str, Any] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise BadOption(f"option {item!r} must be NAME=VALUE, e.g. -o factor=2")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def _rows(rows: list[dict[str, Any]]) -> None:
    table = Table(*rows[0]) if rows else Table()
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    out.print(table)


def _describe(name: str) -> None:
    from dataclasses import fields

    from pospatch import registry

    method = registry.method_class(name)
    out.print(f"[b]{name}[/b]  ({method.family}, site: {method.slot}, needs: {method.needs})\n")
    out.print(method.__doc__ or "", markup=False)
    for item in fields(method):
        out.print(f"  {item.name}: {item.type} = {item.default if item.default is not None else 'None'}", markup=False)


if __name__ == "__main__":
    main()
