"""The command line; every command shows examples under --help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from pospatch.cli._advise import advise
from pospatch.cli._bench import bench
from pospatch.cli._compare import compare
from pospatch.cli._export import export
from pospatch.cli._input import lengths_for, load, made, options_of, patched, task_names, text_of, tokenizer_of
from pospatch.cli._inspect import inspect
from pospatch.cli._search import search
from pospatch.cli._show import describe, out, show_rows
from pospatch.cli._types import AsJson, AutoClass, DataType, ModelPath, Options
from pospatch.errors import BadOption, PospatchError

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """Errors of pospatch are one message on stderr and exit code 1; an interrupted command ends with 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PospatchError as error:
            typer.echo(f"{type(error).__name__}: {error}", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            kept = ctx.invoked_subcommand in ("bench", "evaluate", "compare", "search")  # which keep what is finished
            typer.echo("interrupted" + ("; the same command goes on from here" if kept else ""), err=True)
            raise typer.Exit(130) from None


_TASKS = "A task: " + ", ".join(task_names()) + "."
app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Change how an existing transformers model knows the order of its tokens.",
)


app.command()(inspect)


@app.command()
def methods(
    name_or_model: Annotated[str | None, typer.Argument(help="A method, or a model to say what fits it.")] = None,
    auto: AutoClass = "AutoModel",
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the catalogue as the README has it.")] = False,
) -> None:
    """List the methods, describe one, or say which fit a model and why the others do not.

    Examples: [b]pospatch methods[/b], [b]pospatch methods yarn[/b], [b]pospatch methods smollm2-135m[/b]
    """
    from pospatch import inspection, registry

    if markdown:
        if name_or_model or as_json:
            raise BadOption("--markdown prints the whole catalogue and goes with no name, model or --json")
        return typer.echo(inspection.catalogue_markdown(), nl=False)
    if name_or_model in registry.names():
        return describe(str(name_or_model), as_json)
    loaded = load(name_or_model, auto, "auto", also=registry.names()) if name_or_model else None
    catalogue = inspection.methods(loaded)
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
def hosts(
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as the README has it.")] = False,
) -> None:
    """List the model families that can be patched.

    Example: [b]pospatch hosts[/b]
    """
    from pospatch import inspection

    if markdown:
        return typer.echo(inspection.hosts_markdown(), nl=False)
    if as_json:
        return typer.echo(json.dumps(inspection.hosts(), indent=2))
    table = Table("model_type", "wiring", title="families")
    for family, wiring in inspection.hosts().items():
        table.add_row(family, wiring)
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

    Example: [b]pospatch apply smollm2-135m yarn -o factor=2 --output ./smollm2-16k[/b]
    """
    import pospatch

    changed = patched(load(model, auto, dtype), method, option)
    changed.save_pretrained(made(output))
    tokenizer = tokenizer_of(model)
    if tokenizer is not None:
        tokenizer.save_pretrained(output)
    out.print(str(pospatch.inspect(changed)))
    native = changed.config.pospatch["native"]
    out.print(
        f"saved to {output}: " + ("plain transformers loads it" if native else "loads where pospatch is imported"),
        soft_wrap=True,
    )


@app.command()
def evaluate(
    model: ModelPath,
    task: Annotated[str, typer.Argument(help=_TASKS)],
    lengths: Annotated[str | None, typer.Option(help="Lengths in tokens, separated by commas.")] = None,
    text: Annotated[
        str | None, typer.Option(help="A text file or a name (kjv, topics, persuasion); default kjv.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Method to apply first, or several joined by +.")] = None,
    option: Options = [],  # noqa: B006
    set_: Annotated[list[str], typer.Option("--set", help="Option of the task, NAME=VALUE.")] = [],  # noqa: B006
    output: Annotated[Path, typer.Option("--output", help="Result path; writes .json, .md and .png.")] = Path(
        "evaluation"
    ),
    dtype: DataType = "float32",
) -> None:
    """Measure a model on long context; writes JSON, a table and a picture and goes on where it was interrupted.

    Examples:
    [b]pospatch evaluate smollm2-135m perplexity --lengths 16384 --method yarn -o factor=2[/b]
    [b]pospatch evaluate ./model passkey --lengths 4096,10240 --set depths=3 --set trials=1[/b]
    """
    from pospatch import evaluate as tasks
    from pospatch.evaluate._result import beside

    auto = getattr(tasks.task_of(task), "AUTO", "AutoModelForCausalLM")
    keywords = {**lengths_for(task, lengths), "path": output, **options_of(set_, "--set"), **text_of(task, text)}
    made(output.parent)  # found out now rather than after hours
    if option and method is None:
        raise BadOption(f"-o {option[0]} is an option of a method: say which with --method")
    tokenizer = tokenizer_of(model, needed=True)
    loaded = load(model, auto, dtype)
    if method is not None:
        patched(loaded, method, option)
    result = tasks.run(task, loaded, tokenizer, **keywords)
    show_rows(result.rows)
    out.print(f"wrote {beside(output, '.json')}, .md and .png", soft_wrap=True)


app.command()(export)
app.command()(bench)
app.command()(compare)
app.command()(advise)
app.command()(search)


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
    """Entry point."""
    app()
