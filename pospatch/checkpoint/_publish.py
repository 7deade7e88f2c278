"""A folder's checkpoint replaced as a whole: whoever looks, or is left after a kill, finds the old one or the new one.

A checkpoint is several files that are right only together (config, weights or an index with shards, the patch's tensors,
an adapter's config), read by many programs by their fixed names. No order of renames inside the folder keeps every reader
from a mixture, as no file is read by all of them first. So the new checkpoint is written to a folder beside the old one,
what else lies there is linked into it, both folders change places in one call of the kernel (renameat2 with RENAME_EXCHANGE,
renamex_np with RENAME_SWAP on macOS), and the old one is deleted from where the new one was. A folder that was not there
appears by one ordinary rename.

Where a folder cannot be exchanged (a mount point, a file system or an operating system without the call, a parent that
cannot be written, the process's own working directory, which must not go away under it), files are moved one by one: the
file that makes a loader find a checkpoint goes first and comes last, so that a kill leaves no mixture but a folder in which
loaders find nothing, with the old files in a hidden folder beside or inside it. A warning says so. The next save there
first puts them back.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pospatch.checkpoint._folders import (
    KEPT,
    abandoned,
    exchange,
    flush,
    flush_entries,
    link_tree,
    locked_room,
    prefix_of,
    sweep,
)
from pospatch.errors import CheckpointError

__all__ = ["replacing"]

HEADS = ("config.json", "adapter_config.json", "pospatch_adapter.json")  # without them loaders find no checkpoint
MOVES = ".moves"  # in a room: the names that are moved out of it, for whoever finds it after a kill


@contextmanager
def replacing(path: str | os.PathLike[str], stale: Callable[[str], bool] = lambda name: False) -> Iterator[Path]:
    """An empty folder to write a checkpoint to; when the block ends without an error, its files stand at `path`.

    Args:
        path: the checkpoint's folder, there or not; other files in it survive.
        stale: which names there belong to an older checkpoint of this kind and go with it.

    Raises:
        CheckpointError: `path` is a file.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{path} is a file; give a folder to save to")
    target.parent.mkdir(parents=True, exist_ok=True)
    place = target.parent if _movable(target) else target
    prefix = prefix_of(target)
    for there in {target.parent, target}:
        _recover(there, prefix, target)
    with locked_room(place, prefix, target) as draft:
        yield draft
        new = _names(draft)
        flush(draft)
        if place == target or not _as_whole(draft, target, lambda name: name in new or stale(name)):
            _one_by_one(draft, target, new, stale)
        flush_entries(place)
    sweep(place, prefix)


def _movable(target: Path) -> bool:
    """False where the folder must stay the object it is, or a folder beside it could not take its place."""
    if not os.access(target.parent, os.W_OK):
        return False
    if not target.exists():
        return True
    with suppress(FileNotFoundError):  # a working directory that was deleted
        if Path(os.getcwd()).is_relative_to(target):
            return False
    return os.access(target, os.W_OK) and target.stat().st_dev == target.parent.stat().st_dev


def _as_whole(draft: Path, target: Path, left_out: Callable[[str], bool]) -> bool:
    """Put the draft in the place of the target at once; False where that cannot be done, with the target as it was."""
    if not target.exists():
        os.rename(draft, target)
        return True
    try:
        link_tree(target, draft, left_out)
        flush(draft, files=False)
    except OSError:  # another device below it, or files that can be neither linked nor read
        return False
    if not exchange(draft, target):
        return False
    with suppress(OSError):
        link_tree(draft, target, left_out)  # what others put there meanwhile
    return True


def _one_by_one(draft: Path, target: Path, new: set[str], stale: Callable[[str], bool]) -> None:
    """Move the files; between the old head's going and the new one's coming a loader finds nothing."""
    old = {name for name in new if os.path.lexists(target / name)} | {
        name for name in os.listdir(target) if stale(name)
    }
    if old.intersection(HEADS):
        warnings.warn(
            f"{target} cannot be replaced as a whole (it is mounted, the working directory, or its file system has no exchange), "
            "so its files are moved one by one; a process killed meanwhile leaves the folder without its config",
            stacklevel=5,
        )
    (draft / MOVES).write_text(json.dumps(sorted(new)))
    flush_entries(draft / MOVES)
    aside = draft / KEPT
    aside.mkdir()
    try:
        for name in _heads_last(old)[::-1]:
            _move(target / name, aside / name)
        for name in _heads_last(new):
            _move(draft / name, target / name)
        os.rename(aside, draft / ".replaced")
    except BaseException:
        _put_back(draft, target, new)
        raise


def _recover(place: Path, prefix: str, target: Path) -> None:
    """Undo the moves of processes that were killed between two of them, unless another checkpoint was put there since."""
    for room in abandoned(place, prefix):
        kept = _names(room / KEPT)
        with suppress(OSError, ValueError):  # the room stays, with what it keeps
            new = set(json.loads((room / MOVES).read_text()))
            if not any(os.path.lexists(room / name) for name in new):  # killed after the last move
                os.rename(room / KEPT, room / ".replaced")
            elif not any(os.path.lexists(target / name) for name in kept.intersection(HEADS)):
                _put_back(room, target, new)


def _put_back(room: Path, target: Path, new: set[str]) -> None:
    """The files that were moved out of `target`, in it again, without those that had come."""
    for name in new:
        if not os.path.lexists(room / name):
            (target / name).unlink(missing_ok=True)
    for name in _heads_last(_names(room / KEPT)):
        _move(room / KEPT / name, target / name)
    shutil.rmtree(room / KEPT)


def _names(folder: Path) -> set[str]:
    """Of all that is in a folder and below, but folders."""
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_symlink() or not file.is_dir()}


def _heads_last(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (name in HEADS, name))


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
