"""A checkpoint that also loads where nobody imports pospatch: a shim in its folder does, under `trust_remote_code=True`.

Never written unasked: a file of code in a repository is something its owner decides on.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pospatch.checkpoint._publish import replacing
from pospatch.checkpoint._save import SHIM, Saver, parts_of_a_model, write
from pospatch.errors import BadOption

__all__ = ["SHIM", "save_remote"]

SOURCE = '''"""Imports pospatch, which knows this checkpoint, and does nothing else: pip install 'pospatch>={version}'"""

import pospatch

if [int(part) for part in pospatch.__version__.split(".")[:3]] < {parts}:
    raise ImportError(
        f"this checkpoint needs pospatch >= {version}, found {{pospatch.__version__}}: pip install -U pospatch"
    )

from pospatch.checkpoint._config import PospatchConfig  # noqa: E402, F401
'''


def save_remote(model: Any, path: str | os.PathLike[str], **kwargs: Any) -> None:
    """As `model.save_pretrained(path)`, with a shim for `trust_remote_code=True`; pospatch must be installed there all the same.

    A native result needs none and gets none: plain transformers reads it.

    Args:
        kwargs: as for `save_pretrained` (max_shard_size, ...).

    Raises:
        BadOption: push_to_hub=True, which has a function of its own, or distributed_checkpoint=True.
    """
    from pospatch.api import unwrap
    from pospatch.checkpoint._config import MODEL_TYPE

    if kwargs.pop("push_to_hub", False):
        raise BadOption(
            "push_to_hub=True: call pospatch.push_to_hub(model, repo, remote_code=True), which adds the shim too"
        )
    if kwargs.get("distributed_checkpoint"):
        raise BadOption(
            "distributed_checkpoint=True: all ranks write there at once, so no shim can be added; leave it out"
        )
    target = unwrap(model)
    with replacing(path, stale=parts_of_a_model(kwargs.get("variant"))) as draft:
        # its own saver would exchange the draft, and the lock on it is lost
        if isinstance(vars(target).get("save_pretrained"), Saver):
            write(target, draft, kwargs.pop("state_dict", None), kwargs)
        else:
            target.save_pretrained(draft, **kwargs)
        config = json.loads((draft / "config.json").read_text())
        if config["model_type"] == MODEL_TYPE:
            config["auto_map"] = {"AutoConfig": f"{Path(SHIM).stem}.PospatchConfig"}
            (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            (draft / SHIM).write_text(_source())


def _source() -> str:
    import pospatch

    parts = [int(part) for part in pospatch.__version__.split(".")[:3]]
    return SOURCE.format(version=pospatch.__version__, parts=parts)
