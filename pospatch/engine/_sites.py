"""Where positions live in a live model: attention, rotary and table modules, found by what they are and by the host's row."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from pospatch.engine._seams import dispatches
from pospatch.engine._view import real
from pospatch.errors import UnsupportedHost, suggest
from pospatch.geometry import Rotation
from pospatch.hosts import HOSTS, Host, host_of

__all__ = ["Sites", "Table", "find", "stack_of"]


@dataclass
class Table:
    """One absolute table of the host: `rows` trained positions after `offset` rows of its own."""

    path: str
    parent: nn.Module
    name: str
    module: nn.Module
    offset: int

    @property
    def weight(self) -> nn.Parameter:
        return self.module._parameters["weight"]  # type: ignore[return-value]

    @property
    def rows(self) -> int:
        return self.weight.shape[0] - self.offset


@dataclass
class Sites:
    """All positional sites of one model."""

    host: Host
    attention: dict[str, nn.Module] = field(default_factory=dict)
    rotary: dict[str, nn.Module] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    bias: dict[str, nn.Module] = field(default_factory=dict)

    def native(self) -> list[str]:
        """The kinds of positional mechanism that the host has."""
        found = [("rotation", self.rotary), ("embedding", self.tables), ("score", self.bias)]
        return [site for site, items in found if items]


def find(model: Any) -> Sites:
    """The sites of a model.

    Raises:
        UnsupportedHost: no row for its family, or no attention that dispatches through the registry.
    """
    host = _row(model)
    sites = Sites(host=host)
    for path, module in model.named_modules():
        last = path.rpartition(".")[2]
        if dispatches(module) and last not in host.cross:
            sites.attention[path] = module
        elif inv_freqs(module):
            sites.rotary[path] = module
        elif _ends(path, host.table) and "weight" in module._parameters:
            sites.tables.append(_table(model, path, module, host))
        elif _ends(path, host.bias):
            sites.bias[path] = module
    if not sites.attention:
        raise UnsupportedHost(
            f"{type(model).__name__} has no self-attention that dispatches through transformers' attention registry"
        )
    return sites


def _row(model: Any) -> Host:
    family = getattr(model.config, "model_type", "")
    host = host_of(family)
    if host is None:
        known = [name for row in HOSTS for name in row.families]
        raise UnsupportedHost(
            f"no host row for the family {family!r} ({type(model).__name__}).{suggest(family, known)} "
            f"Supported families: {', '.join(sorted(known))}; see pospatch.hosts()"
        )
    return host


def _ends(path: str, ends: tuple[str, ...]) -> bool:
    return any(path == end or path.endswith("." + end) for end in ends)


def _table(model: Any, path: str, module: Any, host: Host) -> Table:
    parent_path, _, name = path.rpartition(".")
    offset = int(module.padding_idx) + 1 if host.offset == "padding_idx" else int(host.offset)
    return Table(path=path, parent=model.get_submodule(parent_path), name=name, module=module, offset=offset)


def inv_freqs(module: nn.Module) -> list[str]:
    """Names of the frequency buffers of a rotary module: "inv_freq", or one a layer type, "full_attention_inv_freq"."""
    return [name for name in module._buffers if name.endswith("inv_freq") and not name.endswith("original_inv_freq")]


def label_of(buffer: str) -> str | None:
    """The layer type that a frequency buffer serves, or None where it serves all."""
    return buffer.removesuffix("inv_freq").rstrip("_") or None


def stack_of(path: str, encoder_decoder: bool) -> str:
    """ "encoder" or "decoder" by the path where a model has both, else "model"."""
    if not encoder_decoder:
        return "model"
    return "encoder" if "encoder" in path.split(".") else "decoder"


def rotations(sites: Sites) -> dict[str | None, Rotation]:
    """The native rotary encoding by layer type (None where all layers share one)."""
    found: dict[str | None, Rotation] = {}
    for module in sites.rotary.values():
        for buffer in inv_freqs(module):
            label = label_of(buffer)
            found.setdefault(label, _rotation(module, buffer, label))
    return found


def _rotation(module: nn.Module, buffer: str, label: str | None) -> Rotation:
    now: Tensor = module._buffers[buffer]  # type: ignore[assignment]
    parameters = rope_parameters(real(module.config), label)
    theta = float(parameters.get("rope_theta") or 10000.0)
    rope_type = str(parameters.get("rope_type") or "default")
    exact, factor = _recomputed(module, label, rope_type)
    inv_freq = exact if exact is not None and exact.shape == now.shape else now.float()
    return Rotation(dim=2 * now.shape[-1], theta=theta, inv_freq=inv_freq, attention_factor=factor, rope_type=rope_type)


def rope_parameters(config: Any, label: str | None) -> dict[str, Any]:
    """The config's rotary parameters of one layer type."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return dict(parameters.get(label) or {}) if label is not None else dict(parameters)


def _recomputed(module: nn.Module, label: str | None, rope_type: str) -> tuple[Tensor | None, float]:
    """The frequencies from the config in float32: the buffer may have been rounded by `model.to(bfloat16)`."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    function = ROPE_INIT_FUNCTIONS.get(rope_type) or getattr(module, "compute_default_rope_parameters", None)
    if function is None:
        return None, 1.0
    keywords = {} if label is None else {"layer_type": label}
    with torch.device("cpu"):
        inv_freq, factor = function(copy.deepcopy(real(module.config)), **keywords)
    return inv_freq.float().cpu(), float(factor)
