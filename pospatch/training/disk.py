"""Room for what a run leaves: looked at before it starts, and named where it ends meanwhile."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pospatch.errors import BadOption, PospatchError
from pospatch.training.arguments import Arguments

__all__ = ["check", "moments", "needed", "watched"]

FULL = 2**20  # bytes left of a disk that libtorch has filled


def needed(arguments: Arguments, model: Any) -> tuple[int, str]:
    """A lower estimate in bytes, and of what: the trained model, and one checkpoint where any is saved."""
    args = arguments.training
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if args.save_strategy == "no":
        return weights, "the trained model"
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    kept = trained if arguments.tune.tuning.startswith("lora") else weights
    return weights + kept + moments(args) * trained, "the trained model and a checkpoint"


def moments(args: Any) -> int:
    """How many tensors of the size of what is trained the optimizer keeps for certain."""
    optimizer = str(getattr(args.optim, "value", args.optim))
    return 2 if "adam" in optimizer and "bit" not in optimizer else 0


def check(arguments: Arguments, model: Any, folder: Path) -> None:
    """Refuse a run whose disk is certainly too small.

    Raises:
        BadOption: saying how much is needed and how much is free.
    """
    (wanted, what), free = needed(arguments, model), _free(folder)
    if wanted > free:
        advice = "" if arguments.training.save_strategy == "no" else ", or set save_strategy: 'no'"
        raise BadOption(
            f"output_dir {folder}: {what} need about {_gib(wanted)} and {_gib(free)} are free there; "
            f"give another output_dir{advice}"
        )


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Libraries report a disk that fills up in their own words; here it is an error that says what to do.

    Raises:
        BadOption: a write found no room.
    """
    try:
        yield
    except PospatchError:
        raise
    except Exception as error:  # safetensors' errors are of no narrower kind
        if not _tells_of_no_room(error, folder):
            raise
        raise BadOption(
            f"the disk of {folder} is full ({error}); free some of it, and the same command goes on from the last whole "
            "checkpoint, or from the start where there is none"
        ) from error


def _tells_of_no_room(error: BaseException | None, folder: Path) -> bool:
    """libtorch tells only that a write ended early."""
    if isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("unexpected pos", "PytorchStreamWriter")
    ):
        return _free(folder) < FULL
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _free(folder: Path) -> int:
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    return shutil.disk_usage(there).free


def _gib(count: int) -> str:
    return f"{count / 2**30:.3f} GiB"
