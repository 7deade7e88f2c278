"""Measurements of a model on long context; one task a file, found by its name, the function of the same name runs it.

>>> "perplexity" in tasks()
True
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pospatch.errors import BadOptionType, UnknownName, suggest
from pospatch.evaluate._plot import plot
from pospatch.evaluate._result import Result, compare

__all__ = ["Result", "compare", "plot", "run", "task_of", "tasks"]


def tasks() -> list[str]:
    """The names of all tasks: the files of this folder whose name starts without an underscore."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def run(task: str, model: Any, tokenizer: Any, **options: Any) -> Result:
    """Run a task by its name; options are those of the function of the same name.

    Raises:
        UnknownName: no such task.
        BadOptionType: the task has no such option, or a required one is missing.
    """
    function = getattr(task_of(task), task)
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


def task_of(name: str) -> ModuleType:
    """The module of a task: its function of the same name, `draw`, and `AUTO` where it reads no AutoModelForCausalLM.

    Raises:
        UnknownName: no such task.
    """
    if name not in tasks():
        raise UnknownName(f"unknown task {name!r}.{suggest(str(name), tasks())} Tasks: {', '.join(tasks())}")
    return importlib.import_module(f"pospatch.evaluate.{name}")


if not TYPE_CHECKING:  # importing a task's module sets it on this package, over which the function of its name is put
    for _name in tasks():
        globals()[_name] = getattr(task_of(_name), _name)
