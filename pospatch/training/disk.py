"""Room for what a run leaves: looked at before it starts, and named where it ends meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pospatch.errors import BadOption
from pospatch.training.arguments import Arguments

__all__ = ["check", "needed", "watched"]

FULL = 2**20  # bytes left of a disk whose end a write has met: what did not fit is larger


def needed(arguments: Arguments, model: Any) -> int:
    """A lower estimate in bytes: the trained model, and one checkpoint with AdamW's two moments where any is saved."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if arguments.training.save_strategy == "no":
        return weights
    adapter = arguments.tune.tuning.startswith("lora")
    return weights + (4 * trained if adapter else weights) + 8 * trained


def check(arguments: Arguments, model: Any, folder: Path) -> None:
    """Refuse a run whose disk is certainly too small.

    Raises:
        BadOption: saying how much is needed and how much is free.
    """
    wanted, free = needed(arguments, model), _free(folder)
    if wanted > free:
        raise BadOption(
            f"output_dir {folder}: the trained model and a checkpoint need about {_gib(wanted)} and {_gib(free)} are free "
            "there; give another output_dir, or set save_strategy: 'no'"
        )


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Libraries report a disk that fills up in their own words; here it is an error that says what to do.

    Raises:
        BadOption: a write failed and hardly anything is free.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if _free(folder) > FULL:
            raise
        raise BadOption(
            f"the disk of {folder} is full; free some of it, and the same command goes on from the last whole checkpoint"
        ) from error


def _free(folder: Path) -> int:
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    return shutil.disk_usage(there).free


def _gib(count: int) -> str:
    return f"{count / 2**30:.3f} GiB"
