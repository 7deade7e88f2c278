"""What replacing a folder needs of the operating system: exchange, hard links, locks, and data that is really on disk."""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = [
    "KEPT",
    "abandoned",
    "exchange",
    "flush",
    "flush_entries",
    "in_use",
    "link_tree",
    "locked_room",
    "prefix_of",
    "sweep",
]

fcntl: Any = import_module("fcntl") if os.name == "posix" else None  # elsewhere leftovers of killed processes stay
KEPT = ".old"  # in a room: files of the user's that are nowhere else while it is there, so that the room stays
LONGEST = 64  # bytes of a name that are repeated in a room's
_HERE = -100  # AT_FDCWD
_SWAP = 2  # RENAME_EXCHANGE on Linux, RENAME_SWAP on macOS


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; False where the system, or the file system, has no such call."""
    first, second = os.fsencode(one), os.fsencode(other)
    if sys.platform == "linux":
        call, arguments = getattr(ctypes.CDLL(None), "renameat2", None), (_HERE, first, _HERE, second, _SWAP)
    elif sys.platform == "darwin":
        call, arguments = getattr(ctypes.CDLL(None), "renamex_np", None), (first, second, _SWAP)
    else:
        return False
    return call is not None and call(*arguments) == 0


def flush(folder: Path, files: bool = True) -> None:
    """Wait until a folder, its folders and their files are on disk: a later rename must not be there before them."""
    for root, _, names in os.walk(folder):
        for name in names if files else ():
            if stat.S_ISREG((path := Path(root, name)).lstat().st_mode):
                flush_entries(path)
        flush_entries(Path(root))


def flush_entries(path: Path) -> None:
    """The same for one folder's list of names, or for one file."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link_tree(source: Path, room: Path, left_out: Callable[[str], bool], under: str = "") -> None:
    """Give everything in `source` a second name in `room`, except names (relative to the top) that are left out.

    Raises:
        OSError: something there can be neither linked nor copied, or lies on another device.
    """
    for entry in os.scandir(source):
        name, there = f"{under}{entry.name}", room / entry.name
        if entry.is_dir(follow_symlinks=False):
            if entry.stat(follow_symlinks=False).st_dev != room.stat().st_dev:
                raise OSError(errno.EXDEV, "another file system is mounted here", entry.path)
            if not there.exists():
                there.mkdir()
                shutil.copystat(entry.path, there)
            link_tree(Path(entry.path), there, left_out, f"{name}/")
        elif not left_out(name):
            with suppress(FileNotFoundError):  # it went away since it was listed
                _link(Path(entry.path), there)


def _link(source: Path, there: Path) -> None:
    if os.path.lexists(there):
        if source.is_symlink() or source.lstat().st_ino == there.lstat().st_ino:
            return
        there.unlink()  # its owner wrote another file since it was linked
    if source.is_symlink():
        os.symlink(os.readlink(source), there)
        return
    try:
        os.link(source, there)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.ENOENT) or not source.is_file():
            raise
        shutil.copy2(source, there)  # no hard links on this file system, or to files of another user


def prefix_of(target: Path) -> str:
    """How the names of a target's rooms begin, which are no other target's."""
    name = target.name
    if len(os.fsencode(name)) > LONGEST:  # a file system's limit is near, and long names often begin alike
        name = f"{name[: LONGEST // 4]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:LONGEST]}"
    return f".{name}.saving-"


@contextmanager
def locked_room(place: Path, prefix: str, like: Path) -> Iterator[Path]:
    """A new hidden folder in `place` with the permissions of `like`, locked while this process lives, deleted at the end."""
    room, lock = _locked(place, prefix)
    try:
        if like.exists() and place != like:
            shutil.copystat(like, room)
            with suppress(PermissionError):
                os.chown(room, like.stat().st_uid, like.stat().st_gid)
        yield room
    finally:
        _delete(room)
        if lock is not None:
            os.close(lock)


def _locked(place: Path, prefix: str) -> tuple[Path, int | None]:
    while True:
        room = place / f"{prefix}{uuid.uuid4().hex[:12]}"
        room.mkdir()
        try:
            lock = _lock(room)
        except (FileNotFoundError, BlockingIOError):  # another process sweeps it away right now
            continue
        except OSError:  # no locks on this file system, so nobody sweeps either
            return room, None
        if lock is None or room.exists():
            return room, lock
        os.close(lock)


def _lock(room: Path) -> int | None:
    """A handle that holds the folder's lock while it is open; None where there are no locks.

    Raises:
        OSError: there is no such folder, another process holds its lock, or its file system has none.
    """
    if fcntl is None:
        return None
    handle = os.open(room, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _delete(room: Path) -> None:
    if not (room / KEPT).exists():
        shutil.rmtree(room, ignore_errors=True)


def in_use(room: Path) -> bool:
    """True while another one holds the room's lock."""
    try:
        lock = _lock(room)
    except BlockingIOError:
        return True
    except OSError:
        return False
    if lock is not None:
        os.close(lock)
    return False


def abandoned(place: Path, prefix: str) -> Iterator[Path]:
    """The rooms that killed processes left in `place`, each locked while it is looked at."""
    for room in place.glob(f"{glob.escape(prefix)}*"):
        if "." in room.name.removeprefix(prefix):  # of a target whose own name has such an end
            continue
        try:
            lock = _lock(room)
        except OSError:
            continue
        if lock is not None:
            try:
                yield room
            finally:
                os.close(lock)


def sweep(place: Path, prefix: str) -> None:
    """Delete what killed processes left in `place`: rooms whose lock nobody holds, and that keep nothing of the user's."""
    for room in abandoned(place, prefix):
        _delete(room)
