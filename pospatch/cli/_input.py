"""What was typed, as objects: models, tokenizers, options, lengths; each mistake is one clear message."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from pospatch.errors import BadOption, PospatchError, suggest

__all__ = [
    "lengths_for",
    "lengths_of",
    "load",
    "made",
    "options_of",
    "patched",
    "task_names",
    "text_of",
    "tokenizer_of",
]

_DTYPES = ("auto", "float32", "bfloat16", "float16")


def load(path: str | None, auto: str, dtype: str, also: Sequence[str] = ()) -> Any:
    """A model ready to be measured; `also` are names that may have been meant instead of a path."""
    import transformers

    import pospatch

    auto_class = getattr(transformers, auto, None)
    if auto_class is None or not auto.startswith("AutoModel"):
        raise BadOption(f"--auto={auto} must name an AutoModel class of transformers, e.g. AutoModelForCausalLM")
    if dtype not in _DTYPES:
        raise BadOption(f"--dtype={dtype} must be one of {', '.join(_DTYPES)}")
    check_folder(path)
    try:
        return pospatch.from_pretrained(auto_class, resolved(path), dtype=dtype).eval()
    except PospatchError:
        raise
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        hint = suggest(str(path), also)
        raise BadOption(f"no model could be loaded from {path!r} with {auto}.{hint} The reason: {reason}") from None


def tokenizer_of(path: str, needed: bool = False) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(resolved(path))
    except (OSError, ValueError) as error:
        if needed:
            raise BadOption(
                f"no tokenizer could be loaded from {path!r}, and one is needed here: {' '.join(str(error).split())}"
            ) from None
        typer.echo(f"no tokenizer at {path} ({type(error).__name__}); only the model is saved", err=True)
        return None


def check_folder(path: str | None) -> None:
    """A path that cannot be a repository gets a plain message instead of the Hub's."""
    if path is not None and path.startswith(("/", "./", "../", "~")) and not Path(path).expanduser().is_dir():
        raise BadOption(f"there is no folder {path}; give a folder with a model, or a Hub repository")


def resolved(path: str | None) -> Any:
    """A folder or repository: a home folder written out, a named asset fetched."""
    from pospatch import assets

    if path is None or not path.startswith("~"):
        return path and assets.model(path)
    return str(Path(path).expanduser())


def patched(model: Any, method: str, options: list[str]) -> Any:
    import pospatch

    return pospatch.apply(model, method.split("+") if "+" in method else method, **options_of(options))


def made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadOption(f"--output needs the folder {folder}, which cannot be made: {error.strerror}") from None
    return folder


def lengths_of(words: str) -> list[int]:
    try:
        return [int(word) for word in words.split(",")]
    except ValueError:
        raise BadOption(f"--lengths={words} must be integers separated by commas, e.g. 4096,16384") from None


def lengths_for(task: str, words: str | None) -> dict[str, Any]:
    """The lengths as a keyword of a task; a task that has a length of its own does without."""
    parameter = _parameters(task)["lengths"]
    if words is not None:
        several = lengths_of(words)
        return {"lengths": several[0] if parameter.annotation == "int" and len(several) == 1 else several}
    if parameter.default is parameter.empty:
        raise BadOption(f"{task} needs --lengths, in tokens and separated by commas, e.g. --lengths 4096,16384")
    return {}


def text_of(task: str, text: str | None) -> dict[str, Any]:
    """The text as a keyword of a task that reads one; naming one for another task is an error."""
    from pospatch import assets

    if "text" in _parameters(task):
        return {"text": assets.text(text or "kjv")}
    if text is not None:
        raise BadOption(f"--text={text} would be ignored: {task} reads no text of yours")
    return {}


def task_names() -> list[str]:
    """The tasks of `evaluate`, listed without importing what runs them: --help stays quick."""
    folder = Path(__file__).parent.parent / "evaluate"
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def _parameters(task: str) -> Any:
    from inspect import signature

    from pospatch import evaluate

    return signature(getattr(evaluate.task_of(task), task)).parameters


def options_of(items: list[str], flag: str = "-o") -> dict[str, Any]:
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
