"""Where positions live in a live model: attention, rotary and table modules, found by what they are and by the host's row."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from pospatch.engine import _probe
from pospatch.engine._calls import parameters
from pospatch.engine._seams import dispatches
from pospatch.engine._tables import Table, ends, tables_of
from pospatch.engine._view import real
from pospatch.errors import UnsupportedHost
from pospatch.geometry import Rotation
from pospatch.hosts import DETECTED, Host, host_of, refusal_of

__all__ = ["Bias", "Sites", "find", "is_fixed", "stack_of"]


@dataclass
class Bias:
    """One relative-bias table of the host: a module with a weight, or a parameter that its owner reads itself."""

    module: nn.Module
    tensor: str = "weight"
    inner: bool = False

    @property
    def weight(self) -> nn.Parameter:
        return self.module._parameters[self.tensor]  # type: ignore[return-value]


@dataclass
class Sites:
    """All positional sites of one model.

    Args:
        own: the attention modules with mathematics of their own, which no registered function reaches.
        sincos: tables of sines and cosines that q and k are rotated by.
        hushed: modules that give nothing but positions.
        stack: "encoder" or "decoder" where one half of an encoder-decoder was asked for.
        silenced: arguments that bring native positions into an attention module.
    """

    host: Host
    attention: dict[str, nn.Module] = field(default_factory=dict)
    rotary: dict[str, nn.Module] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    bias: dict[str, Bias] = field(default_factory=dict)
    own: dict[str, nn.Module] = field(default_factory=dict)
    sincos: list[Table] = field(default_factory=list)
    hushed: dict[str, nn.Module] = field(default_factory=dict)
    stack: str | None = None
    inputs: dict[str, Tensor] | None = field(default=None, repr=False)

    def probe(self, model: Any) -> dict[str, Tensor]:
        """Inputs of the model's small forwards, found once."""
        if self.inputs is None:
            self.inputs = _probe.inputs(model)
        return self.inputs

    def reprobe(self, model: Any) -> None:
        """Forget the inputs of a model that takes no text: with a table of another length it takes others."""
        if not _probe.reads_text(model):
            self.inputs = None

    @property
    def detected(self) -> bool:
        """True where no row describes the family."""
        return self.host is DETECTED

    def native(self) -> list[str]:
        """The kinds of positional mechanism that the host has."""
        found = [
            ("rotation", self.rotary or self.sincos),
            ("embedding", self.tables or self.hushed),
            ("score", self.bias or self.silenced()),
        ]
        return [site for site, items in found if items]

    def native_bias(self) -> list[Bias]:
        """The bias tables that reach the attention function as its `position_bias`."""
        return [bias for bias in self.bias.values() if not bias.inner]

    def silenced(self) -> tuple[str, ...]:
        """Arguments of the attention modules that bring native positions with the call, of those the row names."""
        taken = {name for module in self.attention.values() for name in parameters(module)}
        return tuple(name for name in self.host.silenced if name in taken)


def find(model: Any, stack: str | None = None) -> Sites:
    """The sites of a model, or of its encoder or decoder alone.

    Raises:
        UnsupportedHost: a family that is known to be out of reach, or a model without self-attention that can be reached.
    """
    host = _row(model)
    foreign = _foreign(model)
    sites = Sites(host=host, tables=tables_of(model, host, host.table), sincos=tables_of(model, host, host.sincos))
    sites.tables = [table for table in sites.tables if not table.path.startswith(foreign)]
    taken = {table.path for table in sites.tables}
    for path, module in model.named_modules():
        if f"{path}.".startswith(foreign):
            continue
        last = path.rpartition(".")[2]
        if ends(path, host.hushed):
            sites.hushed[path] = module
        own = ends(path, host.attention)
        if (own or (not host.attention and dispatches(module))) and last not in host.cross:
            sites.attention[path] = module
            if own:
                sites.own[path] = module
        elif inv_freqs(module):
            sites.rotary[path] = module
        elif ends(path, host.bias) and path not in taken and "weight" in module._parameters:
            sites.bias[path] = Bias(module)
        for name in module._parameters:
            if ends(inner := f"{path}.{name}", host.bias):
                sites.bias[inner] = Bias(module, name, inner=True)
    sites.stack = stack
    if stack is not None:
        _keep(sites, stack)
    if not sites.attention:
        raise UnsupportedHost(
            f"{type(model).__name__} ({model.config.model_type}) has no self-attention that asks transformers' attention "
            "registry, and no row says how to reach its own mathematics"
        )
    return sites


def check_halves(model: Any, sites: Sites) -> None:
    """Refuse an encoder-decoder of which only one half can be reached, unless that half is what was asked for."""
    if sites.stack is not None or not getattr(model.config, "is_encoder_decoder", False):
        return
    found = sorted({stack_of(path, True) for path in sites.attention})
    if found != ["decoder", "encoder"]:
        raise UnsupportedHost(
            f"only the {found[0]} of {type(model).__name__} has attention that can be reached; patch it alone: "
            f"apply(model, ..., part={found[0]!r})"
        )


def _keep(sites: Sites, stack: str) -> None:
    """Forget what stands in the other half of an encoder-decoder."""
    for held in (sites.attention, sites.rotary, sites.bias, sites.own, sites.hushed):
        for path in [path for path in held if stack_of(path, True) != stack]:
            del held[path]
    sites.tables = [table for table in sites.tables if stack_of(table.path, True) == stack]


def _foreign(model: Any) -> tuple[str, ...]:
    """Beginnings of the paths inside models that read no text, within a model that does: its small forwards go past them."""
    from transformers import PreTrainedModel

    if not _probe.reads_text(model):
        return ("\0",)
    inner = ((path, module) for path, module in model.named_modules() if path and isinstance(module, PreTrainedModel))
    return ("\0", *(f"{path}." for path, module in inner if not _probe.reads_text(module)))


def _row(model: Any) -> Host:
    family = getattr(model.config, "model_type", "") or ""
    refusal = refusal_of(family)
    if refusal is not None:
        raise UnsupportedHost(f"{type(model).__name__} ({family}) is out of reach: {refusal.reason}")
    return host_of(family) or DETECTED


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
    for part in path.split("."):
        for stack in ("encoder", "decoder"):
            if part.endswith(stack):
                return stack
    return "decoder"


def rotations(sites: Sites) -> dict[str | None, Rotation]:
    """The native rotary encoding by layer type (None where all layers share one)."""
    found: dict[str | None, Rotation] = {}
    for module in sites.rotary.values():
        for buffer in inv_freqs(module):
            label = label_of(buffer)
            found.setdefault(label, _rotation(module, buffer, label))
    for table in sites.sincos:
        found.setdefault(None, _rotation_of_table(table.matrix()))
    return found


def _rotation_of_table(table: Tensor) -> Rotation:
    """The frequencies behind a table of sines and cosines by position: what stands at position 1."""
    dim = table.shape[-1]
    inv_freq = torch.atan2(table[1, : dim // 2].float(), table[1, dim // 2 :].float()).cpu()
    plain = 1.0 / (10000.0 ** (torch.arange(0, dim, 2, dtype=torch.float) / dim))
    exact = torch.allclose(plain, inv_freq, rtol=1e-4, atol=1e-6)
    return Rotation(
        dim=dim, theta=10000.0, inv_freq=plain if exact else inv_freq, rope_type="default" if exact else "custom"
    )


def _rotation(module: nn.Module, buffer: str, label: str | None) -> Rotation:
    now: Tensor = module._buffers[buffer]  # type: ignore[assignment]
    config = real(getattr(module, "config", None))
    parameters = rope_parameters(config, label)
    theta = float(parameters.get("rope_theta") or 10000.0)
    rope_type = str(parameters.get("rope_type") or "default")
    exact, factor = _recomputed(module, label, rope_type) if config is not None else (None, 1.0)
    inv_freq = exact if exact is not None and exact.shape == now.shape else now.float()
    return Rotation(
        dim=2 * now.shape[-1],
        theta=theta,
        inv_freq=inv_freq,
        attention_factor=factor,
        rope_type=rope_type,
        fixed=is_fixed(rope_type, parameters),
    )


def is_fixed(rope_type: str, parameters: dict[str, Any]) -> bool:
    """False for the two of transformers' types that update their frequencies in a forward."""
    if rope_type == "longrope":
        return bool(parameters.get("short_factor") == parameters.get("long_factor"))
    return "dynamic" not in rope_type


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
    config = copy.deepcopy(real(module.config))
    if getattr(config, "is_heterogeneous", False):  # layers of different sizes: the rotary module chose among them
        name = "attention_scaling" if label is None else f"{label}_attention_scaling"
        return None, float(getattr(module, name, None) or 1.0)
    with torch.device("cpu"):
        inv_freq, factor = function(config, **keywords)
    return inv_freq.float().cpu(), float(factor)
