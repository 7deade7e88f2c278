"""Facts of a model that its config states, and where its positions live, seen on a model without weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pospatch.errors import BadOption, BadOptionType

__all__ = ["Facts", "facts_of"]

_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the rules read; `theta` and `rotated` are those of the layers that see everything.

    mechanism: "rotary", "learned table", "relative bias" or "other".
    windows: of each layer, tokens it sees at most, or None.
    unscaled: trained length before the scaling that the config holds already, where it says so.
    latent: numbers a token and layer in a compressed cache (MLA), or None.
    """

    name: str
    family: str
    mechanism: str
    causal: bool
    trained: int | None
    theta: float | None
    rotated: int | None
    rope_type: str
    unscaled: int | None
    layers: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    latent: int | None
    dtype: str

    def factor(self, length: int) -> float | None:
        """Wanted length over trained length, rounded up to hundredths."""
        return math.ceil(100 * length / self.trained) / 100 if self.trained else None

    def cache_bytes(self, length: int) -> int | None:
        """Bytes of the cache of keys and values for one sequence, or None where there is no cache."""
        if not self.causal:
            return None
        item = _BYTES.get(self.dtype, 2)
        seen = sum(length if window is None else min(length, window) for window in self.windows)
        return seen * item * (self.latent or 2 * self.kv_heads * self.head_dim)


def facts_of(model: Any) -> Facts:
    """Facts from a model, a config, or the folder or repository of one.

    Raises:
        BadOption: no config there.
        UnsupportedHost: a family that pospatch cannot reach.
    """
    from transformers import PretrainedConfig

    from pospatch.engine._geometry import trained_length

    whole = _config(model) if isinstance(model, str) else getattr(model, "config", model)
    if not isinstance(whole, PretrainedConfig):
        raise BadOptionType(f"a model, its config, or the folder of one is wanted, got {type(model).__name__}")
    whole = getattr(whole, "base", None) or whole  # of a checkpoint that pospatch saved
    config = whole.get_text_config(decoder=True)
    mechanism, rows, causal = _seen(model, whole)
    rope = _rope(config)
    heads = int(getattr(config, "num_attention_heads", 0) or 1)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    layers = int(config.num_hidden_layers)
    rank = getattr(config, "kv_lora_rank", None)
    rotary = mechanism == "rotary"
    original = rope.get("original_max_position_embeddings") if rotary else None
    return Facts(
        name=Path(str(whole._name_or_path)).name or config.model_type,
        family=config.model_type,
        mechanism=mechanism,
        causal=causal,
        trained=rows or trained_length(config),  # as `inspect` has it: a further factor is one of this length
        theta=float(rope.get("rope_theta", 10000.0)) if rotary else None,
        rotated=int(head_dim * rope.get("partial_rotary_factor", 1.0)) // 2 * 2 if rotary else None,
        rope_type=str(rope.get("rope_type", "default")),
        unscaled=int(original) if original else None,
        layers=layers,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=head_dim,
        windows=_windows(config, layers),
        latent=int(rank) + int(getattr(config, "qk_rope_head_dim", 0) or 0) if rank else None,
        dtype=str(getattr(whole, "dtype", None) or getattr(config, "dtype", None) or "float32").removeprefix("torch."),
    )


def _config(path: str) -> Any:
    from transformers import AutoConfig

    from pospatch.checkpoint._config import register

    register()
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise BadOption(f"no config could be read from {path!r}: {' '.join(str(error).split())}") from None


def _seen(model: Any, config: Any) -> tuple[str, int | None, bool]:
    """The mechanism, the rows of a learned table, and whether a token sees only earlier ones."""
    import torch
    from transformers import AutoModel, PreTrainedModel

    from pospatch.api import unwrap
    from pospatch.engine._sites import find

    if hasattr(model, "parameters"):
        bare: Any = unwrap(model)
    else:
        with torch.device("meta"):
            bare = AutoModel.from_config(config)
    assert isinstance(bare, PreTrainedModel)
    sites = find(bare)
    flags = [bool(getattr(module, "is_causal", True)) for module in sites.attention.values()]
    encoder = getattr(config, "is_encoder_decoder", False) or not _generates(config)
    causal = any(flags) and not encoder
    if sites.rotary:
        return "rotary", None, causal
    if sites.tables:
        return "learned table", sites.tables[0].rows, causal
    return ("relative bias" if sites.bias else "other"), None, causal


def _generates(config: Any) -> bool:
    """Whether transformers knows the family as a causal language model that is not an encoder turned into one."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    return type(config.get_text_config(decoder=True)) in MODEL_FOR_CAUSAL_LM_MAPPING and (
        type(config) not in MODEL_FOR_MASKED_LM_MAPPING or bool(getattr(config, "is_decoder", False))
    )


def _rope(config: Any) -> dict[str, Any]:
    """The rotary parameters of the layers that see everything."""
    found = getattr(config, "rope_parameters", None) or {}
    nested = {name: each for name, each in found.items() if isinstance(each, dict)}
    return dict(nested.get("full_attention") or next(iter(nested.values()), found))


def _windows(config: Any, layers: int) -> tuple[int | None, ...]:
    window = getattr(config, "sliding_window", None)
    window = window if isinstance(window, int) and getattr(config, "use_sliding_window", True) else None
    types = getattr(config, "layer_types", None)
    if types:
        return tuple(window if kind in ("sliding_attention", "chunked_attention") else None for kind in types)
    return (window,) * layers
