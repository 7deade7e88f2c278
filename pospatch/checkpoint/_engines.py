"""How other engines are told the same positions: vLLM's overrides and llama.cpp's flags; None where they have no word."""

from __future__ import annotations

import json
import shlex
from typing import Any

__all__ = ["gguf_keys", "llama_cpp_flags", "plain_keys", "vllm_overrides"]

PLAIN_YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}


def vllm_overrides(config: Any) -> str | None:
    """The value of vLLM's `--hf-overrides` that gives the unpatched base the positions of this config."""
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None)
    if not parameters:
        return None
    found = {"rope_parameters": parameters, "max_position_embeddings": text.max_position_embeddings}
    return shlex.quote(json.dumps(found))


def llama_cpp_flags(config: Any) -> str | None:
    """llama.cpp's flags that give the unpatched base the positions of this config."""
    keys = gguf_keys(config)
    if keys is None:
        return None
    flags = {
        "rope.freq_base": "--rope-freq-base",
        "rope.scaling.type": "--rope-scaling",
        "rope.scaling.factor": "--rope-scale",
        "rope.scaling.original_context_length": "--yarn-orig-ctx",
        "rope.scaling.yarn_beta_fast": "--yarn-beta-fast",
        "rope.scaling.yarn_beta_slow": "--yarn-beta-slow",
        "context_length": "--ctx-size",
    }
    shown = {key: value if isinstance(value, str) else f"{value:g}" for key, value in keys.items()}
    return " ".join(f"{flags[key]} {value}" for key, value in shown.items())


def gguf_keys(config: Any) -> dict[str, Any] | None:
    """The keys, below the architecture's name, by which a GGUF says these positions; None where llama.cpp computes others."""
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or {}
    kind = parameters.get("rope_type")
    if kind is None:
        return None
    found = plain_keys(text)
    if kind == "default":
        return found
    if kind == "linear":
        return {**found, "rope.scaling.type": "linear", "rope.scaling.factor": float(parameters["factor"])}
    if kind != "yarn" or not _plain(parameters):
        return None
    return {
        **found,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(parameters["factor"]),
        "rope.scaling.original_context_length": int(parameters["original_max_position_embeddings"]),
        **_betas(parameters),
    }


def plain_keys(text: Any) -> dict[str, Any]:
    """The keys of plain frequencies: the length and the base, of the part of a config that reads text."""
    parameters = getattr(text, "rope_parameters", None) or {}
    return {
        "context_length": int(text.max_position_embeddings),
        "rope.freq_base": float(parameters.get("rope_theta") or 10000.0),
    }


def _plain(parameters: dict[str, Any]) -> bool:
    """True for the amplitude and the rounding that llama.cpp has built in."""
    odd = [name for name in ("attention_factor", "mscale", "mscale_all_dim") if parameters.get(name) is not None]
    return not odd and parameters.get("truncate", True) is True and parameters.get("partial_rotary_factor", 1.0) == 1.0


def _betas(parameters: dict[str, Any]) -> dict[str, float]:
    given = {name: float(parameters.get(name) or PLAIN_YARN[name]) for name in ("beta_fast", "beta_slow")}
    return {f"rope.scaling.yarn_{name}": value for name, value in given.items() if value != PLAIN_YARN[name]}
