"""The command line: inspect, methods, apply, evaluate, demo; every command shows examples under --help."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from pospatch.errors import BadOption, PospatchError, suggest

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
            kept = ctx.invoked_subcommand == "evaluate"  # which keeps finished cells beside its output
            typer.echo("interrupted" + ("; the same command goes on from here" if kept else ""), err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Change how an existing transformers model knows the order of its tokens.",
)
out = Console(highlight=False)

ModelPath = Annotated[
    str, typer.Argument(help="Folder or Hub repository of a model, or smollm2-135m (from the package registry).")
]
AutoClass = Annotated[str, typer.Option("--auto", help="Auto class that loads the model.")]
Options = Annotated[
    list[str], typer.Option("--option", "-o", help="Option of the method, NAME=VALUE; repeat for more.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DataType = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
_DTYPES = ("auto", "float32", "bfloat16", "float16")


@app.command()
def inspect(model: ModelPath, auto: AutoClass = "AutoModel", as_json: AsJson = False) -> None:
    """Show what positional mechanism a model has, where, and how long it was trained for.

    Examples: [b]pospatch inspect smollm2-135m[/b], [b]pospatch inspect ./model --json[/b]
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

    Examples: [b]pospatch methods[/b], [b]pospatch methods yarn[/b], [b]pospatch methods smollm2-135m[/b]
    """
    from pospatch import inspection, registry

    if markdown:
        if name_or_model or as_json:
            raise BadOption("--markdown prints the whole catalogue and goes with no name, model or --json")
        return typer.echo(inspection.catalogue_markdown(), nl=False)
    if name_or_model in registry.names():
        return _describe(str(name_or_model), as_json)
    loaded = _load(name_or_model, auto, "auto", also=registry.names()) if name_or_model else None
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

    if output.exists() and not output.is_dir():
        raise BadOption(f"--output {output} is a file; give a folder")
    patched = _patched(_load(model, auto, dtype), method, option)
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
        str | None, typer.Option(help="For perplexity: a text file or a name (kjv, topics, persuasion); default kjv.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Method to apply first, or several joined by +.")] = None,
    option: Options = [],  # noqa: B006
    set_: Annotated[list[str], typer.Option("--set", help="Option of the task, NAME=VALUE.")] = [],  # noqa: B006
    output: Annotated[Path, typer.Option("--output", help="Result path; writes .json and .png.")] = Path("evaluation"),
    dtype: DataType = "float32",
) -> None:
    """Measure a model on long context; writes JSON and a picture side by side and goes on where it was interrupted.

    Examples:
    [b]pospatch evaluate smollm2-135m perplexity --lengths 16384 --method yarn -o factor=2[/b]
    [b]pospatch evaluate ./model passkey --lengths 4096,10240 --set depths=3 --set trials=1[/b]
    """
    from pospatch import evaluate as tasks

    if task not in tasks.tasks():
        raise BadOption(f"unknown task {task!r}.{suggest(task, tasks.tasks())} Tasks: {', '.join(tasks.tasks())}")
    keywords: dict[str, Any] = {"lengths": _lengths(lengths), "path": output, **_options(set_, "--set")}
    keywords |= _text_of(task, text)
    if option and method is None:
        raise BadOption(f"-o {option[0]} is an option of a method: say which with --method")
    tokenizer = _tokenizer(model, needed=True)
    loaded = _load(model, "AutoModelForCausalLM", dtype)
    if method is not None:
        _patched(loaded, method, option)
    result = tasks.run(task, loaded, tokenizer, **keywords)
    _rows(result.rows)
    out.print(f"wrote {output.with_suffix('.json')} and {output.with_suffix('.png')}", soft_wrap=True)


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


def _load(path: str | None, auto: str, dtype: str, also: Sequence[str] = ()) -> Any:
    """A model ready to be measured; `also` are names that may have been meant instead of a path."""
    import transformers

    import pospatch

    auto_class = getattr(transformers, auto, None)
    if auto_class is None or not auto.startswith("AutoModel"):
        raise BadOption(f"--auto={auto} must name an AutoModel class of transformers, e.g. AutoModelForCausalLM")
    if dtype not in _DTYPES:
        raise BadOption(f"--dtype={dtype} must be one of {', '.join(_DTYPES)}")
    _check_folder(path)
    try:
        return pospatch.from_pretrained(auto_class, _resolved(path), dtype=dtype).eval()
    except PospatchError:
        raise
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        hint = suggest(str(path), also)
        raise BadOption(
            f"no model could be loaded from {path!r} with {auto}.{hint} transformers says: {reason}"
        ) from None


def _tokenizer(path: str, needed: bool = False) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(_resolved(path))
    except (OSError, ValueError) as error:
        if needed:
            raise BadOption(
                f"no tokenizer could be loaded from {path!r}, and a text is read with one: {' '.join(str(error).split())}"
            ) from None
        typer.echo(f"no tokenizer at {path} ({type(error).__name__}); only the model is saved", err=True)
        return None


def _check_folder(path: str | None) -> None:
    """A path that cannot be a repository gets a plain message instead of the Hub's."""
    if path is not None and path.startswith(("/", "./", "../", "~")) and not Path(path).expanduser().is_dir():
        raise BadOption(f"there is no folder {path}; give a folder with a model, or a Hub repository")


def _resolved(path: str | None) -> Any:
    from pospatch import assets

    if path is None or not path.startswith("~"):
        return path and assets.model(path)
    return str(Path(path).expanduser())


def _patched(model: Any, method: str, options: list[str]) -> Any:
    import pospatch

    return pospatch.apply(model, method.split("+") if "+" in method else method, **_options(options))


def _lengths(words: str) -> list[int]:
    try:
        return [int(word) for word in words.split(",")]
    except ValueError:
        raise BadOption(f"--lengths={words} must be integers separated by commas, e.g. 4096,16384") from None


def _text_of(task: str, text: str | None) -> dict[str, Any]:
    """The text as a keyword of a task that reads one; naming one for another task is an error."""
    from pospatch import assets

    if task == "perplexity":
        return {"text": assets.text(text or "kjv")}
    if text is not None:
        raise BadOption(f"--text={text} would be ignored: {task} reads no text of yours")
    return {}


def _options(items: list[str], flag: str = "-o") -> dict[str, Any]:
    """NAME=VALUE pairs; a value is read as a Python literal where it is one, else as a word."""
    options: dict[str, Any] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name.isidentifier():
            raise BadOption(
                f"{flag} {item} must be NAME=VALUE, e.g. {flag} {'factor=2' if flag == '-o' else 'bucket=1024'}"
            )
        if name in options:
            raise BadOption(f"{flag} {name} is given twice")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def _rows(rows: list[dict[str, Any]]) -> None:
    table = Table(*(name for name in rows[0] if name != "answers"))
    for row in rows:
        shown = [value for name, value in row.items() if name != "answers"]
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in shown))
    out.print(table)


def _describe(name: str, as_json: bool) -> None:
    from inspect import cleandoc

    from pospatch import inspection, registry

    if as_json:
        return typer.echo(json.dumps({name: inspection.methods()[name]}, indent=2))
    method = registry.method_class(name)
    out.print(f"[b]{name}[/b]  ({method.family}, site: {method.slot}, needs: {method.needs})\n")
    out.print(cleandoc(method.__doc__ or ""), markup=False)
    out.print("\nOptions:")
    for item in fields(method):
        default = "required" if item.default is MISSING else f"default {item.default}"
        out.print(f"  {item.name} ({item.type}): {default}", markup=False)


if __name__ == "__main__":
    main()
