"""Files: a checkpoint that is not whole, or that reaches out of its folder."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator

from pospatch.checkpoint._folders import KEPT, in_use, prefix_of
from pospatch.checkpoint.doctor._evidence import Evidence
from pospatch.checkpoint.doctor._finding import Finding, error, note, warning
from pospatch.checkpoint.doctor._weights import INDEX
from pospatch.checkpoint.doctor.checks._registry import check


@check
def outside(seen: Evidence) -> Iterator[Finding]:
    """An index of shards that names files outside the folder, which transformers follows."""
    far = sorted({place for place in seen.weights.places.values() if "/" in place or "\\" in place or place == ".."})
    if far:
        yield error(f"{INDEX} names {far[0]!r:.120}", "files of this folder alone", "do not load it")


@check
def incomplete(seen: Evidence) -> Iterator[Finding]:
    """Shards or weights that are not there."""
    names = seen.files.names()
    if names is None or seen.kind == "gguf":
        return
    missing = sorted({place for place in seen.weights.places.values() if "/" not in place} - names)
    if missing:
        yield error(f"no {missing[0]:.120}", f"the {len(missing)} shards that {INDEX} names", "copy the missing files")
    elif not seen.weights.places and not seen.weights.pickled and seen.kind != "pospatch adapter":
        yield warning("a config and no weights", "safetensors beside it", "copy the weights, or save it again")


@check
def interrupted(seen: Evidence) -> Iterator[Finding]:
    """What an interrupted save left."""
    left = sorted(name for name in seen.files.names() or () if re.match(r"\..*\.saving-", name))
    if (folder := seen.files.folder) is not None and getattr(seen.files, "whole", False):
        folder = folder.resolve()
        beside = [room.name for room in folder.parent.glob(f"{glob.escape(prefix_of(folder))}*")]
        rooms = [folder / name for name in left] + [folder.parent / name for name in sorted(beside)]
        left = [str(room) for room in rooms if not in_use(room)]
    if left:
        yield note(
            f"{left[0]}, left by a save that was interrupted",
            "no such folder",
            f"where it has a folder {KEPT}, move what is in there back, it is the old checkpoint (the next save here does so "
            "too); else delete it",
        )


@check
def pickled(seen: Evidence) -> Iterator[Finding]:
    """Weights in a form that runs code when it is read."""
    if seen.weights.pickled and not seen.weights.places:
        yield warning(
            f"weights in {seen.weights.pickled[0]} alone, which is not opened here",
            "safetensors, whose header can be read",
            "load and save it once: model.save_pretrained(path) writes safetensors",
        )
