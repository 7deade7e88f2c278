"""Measurements of a causal language model on long context; one task a file.

>>> "perplexity" in tasks()
True
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from pospatch.errors import BadOptionType, UnknownName, suggest
from pospatch.evaluate._plot import plot
from pospatch.evaluate._result import Result, compare
from pospatch.evaluate.passkey import passkey
from pospatch.evaluate.perplexity import perplexity

__all__ = ["Result", "compare", "passkey", "perplexity", "plot", "run", "tasks"]


def tasks() -> list[str]:
    """The names of all tasks: the files of this folder whose name starts without an underscore."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def run(task: str, model: Any, tokenizer: Any, **options: Any) -> Result:
    """Run a task by its name; options are those of the function of the same name.

    Raises:
        UnknownName: no such task.
        BadOptionType: the task has no such option, or a required one is missing.
    """
    if task not in tasks():
        raise UnknownName(f"unknown task {task!r}.{suggest(str(task), tasks())} Known tasks: {', '.join(tasks())}")
    function = getattr(importlib.import_module(f"pospatch.evaluate.{task}"), task)
    parameters = inspect.signature(function).parameters
    for name in options:
        if name not in parameters:
            valid = [each for each in parameters if each not in ("model", "tokenizer")]
            raise BadOptionType(
                f"task {task!r} has no option {name!r}.{suggest(name, valid)} Options: {', '.join(valid)}"
            )
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in options and name not in ("model", "tokenizer")
    ]
    if missing:
        raise BadOptionType(f"task {task!r} needs {', '.join(missing)}: give it as an option")
    result: Result = function(model, tokenizer, **options)
    return result
