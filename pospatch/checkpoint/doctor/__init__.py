"""The doctor: what a checkpoint claims of its positions, what transformers will use, and where the two differ."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from pospatch.checkpoint._numbers import check_counts
from pospatch.checkpoint.doctor._evidence import gather, gather_files
from pospatch.checkpoint.doctor._files import Folder
from pospatch.checkpoint.doctor._finding import Finding
from pospatch.checkpoint.doctor._gguf import Header
from pospatch.checkpoint.doctor._report import Diagnosis, report
from pospatch.errors import CheckpointError, CheckpointWarning

__all__ = ["Diagnosis", "Finding", "diagnose", "guard"]

SAID = ("refused",)  # by transformers itself, which reads it after all where it may run the code beside it
DROPPED = ("gguf_scaling", "gguf_factors", "gguf_theta")  # what methods put back


def diagnose(path: str | os.PathLike[str], **options: Any) -> Diagnosis:
    """Look at a folder, a repository or a GGUF file; no weight is loaded.

    Args:
        path: of a model or an adapter.
        options: auto_class (name of the class whose sites are shown), base (of an adapter), and as for Hub calls revision,
            token, cache_dir, subfolder, force_download, local_files_only.

    Raises:
        CheckpointError: nothing there that could be looked at.
        BadOptionType: an option that is none.
    """
    return report(gather(path, **options))


def guard(path: str | os.PathLike[str], hub: dict[str, Any], gguf_file: str | None = None) -> Header | None:
    """Refuse a checkpoint that would be misread, and warn of what is near it, before it is loaded.

    Returns:
        The header of a GGUF whose positions transformers drops and methods can put back; None for all others.

    Raises:
        CheckpointError: it would be misread; the message says what was got, what was wanted, what to do.
    """
    folder = _folder(path, gguf_file or "config.json", hub)
    if folder is None or not (folder / (gguf_file or "config.json")).is_file():
        return None  # whoever loads it says that there is nothing
    here = Folder(folder, str(path), whole=Path(path).is_dir())
    seen = gather(folder / gguf_file) if gguf_file else gather_files(here)
    check_counts(seen.raw, str(path))
    found = report(seen).findings
    dropped = [item for item in found if item.severity == "error" and item.check in DROPPED]
    said = SAID if seen.kind == "model" else ()
    wrong = [item for item in found if item.severity == "error" and item not in dropped and item.check not in said]
    if wrong:
        raise CheckpointError(
            f"{path} would be misread. "
            + "; ".join(str(item) for item in wrong)
            + ". `pospatch inspect` shows all; the class's own from_pretrained loads it as it is"
        )
    for item in found:
        if item.severity == "warning":
            warnings.warn(f"{path}: {item}", CheckpointWarning, stacklevel=3)
    return seen.gguf if dropped else None


def _folder(path: str | os.PathLike[str], name: str, hub: dict[str, Any]) -> Path | None:
    """Where the files lie on this machine: the folder, or the cache's, into which the first file is fetched.

    Raises:
        OSError: the Hub does not answer; whoever loads would only wait for it again, file after file.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from transformers.utils import cached_file

    if (folder := Path(path)).is_dir():
        return folder / (hub.get("subfolder") or "")
    found = cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub)
    if found is not None:
        return Path(found).parent
    asked = not (constants.HF_HUB_OFFLINE or hub.get("local_files_only"))
    where = {key: hub[key] for key in ("cache_dir", "revision") if hub.get(key) is not None}
    file = f"{hub['subfolder']}/{name}" if hub.get("subfolder") else name
    if asked and try_to_load_from_cache(str(path), file, **where) is None:  # one that does not exist is kept as such
        raise OSError(
            f"{constants.ENDPOINT} cannot be reached, and {path} is not on this machine: give a folder, or look for a network"
        )
    return None
