"""The files of a checkpoint in a folder or on the Hub: small JSON files whole, of weights the header only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

from pospatch.checkpoint._bounds import read_object, read_shapes
from pospatch.checkpoint._load import HUB
from pospatch.errors import BadOption, BadOptionType, CheckpointError

__all__ = ["Files", "Folder", "Repository", "open_files"]

Shapes = dict[str, tuple[int, ...]]


class Files(Protocol):
    """What the doctor asks of a folder or repository."""

    source: str

    @property
    def folder(self) -> Path | None:
        """Where they all are on this machine, or None."""

    def names(self) -> set[str] | None:
        """Names of all files, or None where they are not all known."""

    def path(self, name: str) -> Path | None:
        """A small file on this machine, or None where there is none."""

    def shapes(self, name: str) -> Shapes:
        """Names and shapes in the header of one safetensors file."""


class Folder:
    """A folder on this machine; `whole` is False for a cache that may hold some of the files only."""

    def __init__(self, folder: Path, source: str | None = None, whole: bool = True) -> None:
        self.folder, self.source, self.whole = folder, source or str(folder), whole

    def names(self) -> set[str] | None:
        return {path.name for path in self.folder.iterdir()} if self.whole else None

    def path(self, name: str) -> Path | None:
        found = self.folder / name
        return found if found.is_file() else None

    def shapes(self, name: str) -> Shapes:
        return read_shapes(self.folder / name)


class Repository:
    """A repository on the Hub, or what the cache holds of it."""

    def __init__(self, repo: str, hub: dict[str, Any]) -> None:
        self.source = repo
        self.folder: Path | None = None
        self._hub, self._listed = hub, False
        self._names: set[str] | None = None

    def names(self) -> set[str] | None:
        from huggingface_hub import HfApi
        from huggingface_hub.constants import is_offline_mode

        if not self._listed and not is_offline_mode() and not self._hub.get("local_files_only"):
            prefix = f"{self._hub['subfolder']}/" if self._hub.get("subfolder") else ""
            try:
                listed = HfApi(token=self._hub.get("token")).list_repo_files(
                    self.source, revision=self._hub.get("revision")
                )
            except Exception as error:  # noqa: BLE001  whatever the Hub's HTTP client raises
                raise _unreachable(self.source, error, self._hub) from None
            self._names = {name.removeprefix(prefix) for name in listed if name.startswith(prefix)}
        self._listed = True
        return self._names

    def path(self, name: str) -> Path | None:
        from transformers.utils import cached_file

        if self._names is not None and name not in self._names:
            return None
        try:
            found = cached_file(self.source, name, _raise_exceptions_for_missing_entries=False, **self._hub)
        except Exception as error:  # noqa: BLE001  as above
            raise _unreachable(self.source, error, self._hub) from None
        return None if found is None else Path(found)

    def shapes(self, name: str) -> Shapes:
        from huggingface_hub import HfApi, try_to_load_from_cache

        inside = f"{self._hub['subfolder']}/{name}" if self._hub.get("subfolder") else name
        known = {key: self._hub[key] for key in ("cache_dir", "revision") if self._hub.get(key)}
        here = try_to_load_from_cache(self.source, inside, **known)
        if isinstance(here, str):
            return Folder(Path(here).parent, self.source, whole=False).shapes(Path(here).name)
        try:
            read = HfApi(token=self._hub.get("token")).parse_safetensors_file_metadata(
                self.source, inside, revision=self._hub.get("revision")
            )
        except Exception as error:  # noqa: BLE001  as above
            raise _unreachable(f"{self.source}: {name}", error, self._hub) from None
        return {key: tuple(tensor.shape) for key, tensor in read.tensors.items()}


def _unreachable(what: str, error: Exception, hub: dict[str, Any]) -> CheckpointError:
    from pospatch.checkpoint.hub import clean

    why = clean(" ".join(str(error).split()), hub.get("token"))
    return CheckpointError(f"{what} cannot be read: {type(error).__name__}: {why:.300}")


def open_files(path: str | os.PathLike[str], hub: dict[str, Any]) -> Files:
    """A folder where there is one of this name, else a repository.

    Raises:
        BadOption, BadOptionType: an option that no Hub call has, or that a folder has no use for.
        CheckpointError: a path that is no folder and can be no repository.
    """
    if unknown := sorted(set(hub) - set(HUB)):
        raise BadOptionType(f"inspect: unknown option {unknown[0]!r}; valid for a path: {', '.join(HUB)}")
    folder = Path(path).expanduser()
    if folder.is_dir():
        if odd := sorted(name for name in hub if name != "subfolder"):
            raise BadOption(f"{odd[0]}=... would be ignored: {path} is a folder on this machine")
        inner = folder / (hub.get("subfolder") or "")
        if not inner.is_dir():
            raise CheckpointError(f"{path} has no folder {hub['subfolder']!r:.100}")
        return Folder(inner, str(path))
    name = str(path)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise CheckpointError(
            f"there is no folder {path}; give a folder with a checkpoint, a .gguf file or a repository"
        )
    return Repository(name, hub)


def read_json(files: Files, name: str) -> dict[str, Any] | None:
    """A JSON object of a checkpoint, or None where there is no such file.

    Raises:
        CheckpointError: too large, or no JSON object.
    """
    path = files.path(name)
    return None if path is None else read_object(path, files.source)
