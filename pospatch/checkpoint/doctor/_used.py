"""What transformers makes of a checkpoint: its config, and a model without memory that shows where the positions live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pospatch.checkpoint._numbers import check_counts
from pospatch.engine._hushed import hushed
from pospatch.errors import BadOption, CheckpointError

__all__ = ["Table", "Used", "look", "use"]

WIDTH = 2**16  # of a head, beyond which no frequencies are computed


@dataclass(frozen=True)
class Table:
    """A table of positions: its name in the weights, and its shape by the config."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Used:
    """What transformers uses.

    Args:
        config: the config of the whole model; None where transformers refuses it.
        failure: why transformers, or this look at its model, stopped; None where all is there.
        model_class: the class that was looked at.
        rope: rotary parameters by layer type (None where all layers share them), of a model that rotates.
        spectra: (inv_freq, amplitude) by layer type.
        rotates: "module" for a rotary module, "fixed" for sines and cosines that no config changes, "" for none.
        names: names of the model's tensors.
        sites, trained: as `inspect` shows them.
    """

    config: Any = None
    failure: str | None = None
    model_class: str = ""
    rope: dict[str | None, dict[str, Any]] = field(default_factory=dict)
    spectra: dict[str | None, tuple[Tensor, float]] = field(default_factory=dict)
    rotates: str = ""
    tables: tuple[Table, ...] = ()
    names: frozenset[str] = frozenset()
    sites: tuple[dict[str, Any], ...] = ()
    trained: int | None = None

    @property
    def text(self) -> Any:
        """The part of the config that reads text."""
        return self.config.get_text_config(decoder=True)

    @property
    def length(self) -> int | None:
        """Tokens that the config promises."""
        from pospatch.engine._geometry import trained_length

        return None if self.config is None else trained_length(self.text)

    @property
    def thetas(self) -> dict[str | None, float]:
        """The base of the frequencies by layer type, where one is known."""
        labels = {**self.rope, **self.spectra}
        found = {label: _theta(self.rope.get(label) or {}, self.spectra.get(label)) for label in labels}
        return {label: theta for label, theta in found.items() if theta is not None}


def use(
    folder: Path, raw: dict[str, Any], auto_class: str | None, stack: list[Any], gguf_file: str | None = None
) -> Used:
    """Read the config as transformers does and build its model without memory.

    raw: the numbers in it that say how many modules there are.

    Raises:
        BadOption: `auto_class` is no class of transformers that builds models.
    """
    from transformers import AutoConfig

    from pospatch.checkpoint._config import PospatchConfig, register

    register()
    extra = {} if gguf_file is None else {"gguf_file": gguf_file}
    try:
        check_counts(raw, gguf_file or "config.json")
    except CheckpointError as error:
        return Used(failure=str(error))
    try:
        with hushed():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **extra)
    except ImportError as error:
        raise CheckpointError(f"{gguf_file or folder} needs a package that is missing: {_said(error)}") from error
    except Exception as error:  # noqa: BLE001  whatever transformers raises is what is found
        return Used(failure=_said(error))
    config = config.base if isinstance(config, PospatchConfig) else config
    return look(config, auto_class, stack)


def look(config: Any, auto_class: str | None = None, stack: Sequence[Any] = ()) -> Used:
    """Build the model of a config without memory, and see where its positions live."""
    from pospatch.engine._describe import site_rows
    from pospatch.engine._parts import choose
    from pospatch.engine._plan import Plan
    from pospatch.engine._sites import find
    from pospatch.errors import PospatchError

    build = _class(config, auto_class)
    name = getattr(build, "__self__", build).__name__
    try:
        with hushed(), torch.device("meta"):
            model = build(config)
        part, half = choose(model, None)
        sites = find(part, half)
        plan = Plan(part, sites, list(stack), {}, model)
        shapes = {id(value): name for name, value in model.state_dict(keep_vars=True).items()}
        return Used(
            config,
            None,
            type(model).__name__,
            _rope(config, sites),
            _spectra(sites),
            "module" if sites.rotary else "fixed" if sites.sincos else "",
            tuple(Table(shapes[id(t.weight)], tuple(t.weight.shape)) for t in sites.tables if id(t.weight) in shapes),
            frozenset(shapes.values()),
            tuple(site_rows(plan)),
            plan.trained_length(),
        )
    except PospatchError as error:
        return Used(config, str(error), name)
    except Exception as error:  # noqa: BLE001  as above: a config that builds no model
        return Used(config, _said(error), name)


def _class(config: Any, auto_class: str | None) -> Any:
    """How the model is built: by an Auto class that was asked for, else by the class that the checkpoint names."""
    import transformers

    if auto_class is not None:
        asked = getattr(transformers, auto_class, None)
        if asked is None or not auto_class.startswith("AutoModel"):
            raise BadOption(f"auto_class={auto_class!r} must name an AutoModel class of transformers")
        return asked.from_config
    stated = getattr(config, "architectures", None)
    named = stated[0] if isinstance(stated, list) and stated else None
    found = getattr(transformers, named, None) if isinstance(named, str) else None
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    return transformers.AutoModel.from_config


def _rope(config: Any, sites: Any) -> dict[str | None, dict[str, Any]]:
    """Parameters that the rotary modules read."""
    from pospatch.engine._sites import inv_freqs, label_of, rope_parameters

    found: dict[str | None, dict[str, Any]] = {}
    for module in sites.rotary.values():
        for buffer in inv_freqs(module):
            label = label_of(buffer)
            read = rope_parameters(getattr(module, "config", config), label)
            if read:
                found.setdefault(label, read)
    stated = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    if found and None not in found:  # types of which this config has no layer
        found |= {label: dict(item) for label, item in stated.items() if isinstance(item, dict) and label not in found}
    return found


def _spectra(sites: Any) -> dict[str | None, tuple[Tensor, float]]:
    """Frequencies as the rotary modules compute them, on the CPU."""
    from pospatch.engine._sites import inv_freqs, label_of

    found: dict[str | None, tuple[Tensor, float]] = {}
    for module in sites.rotary.values():
        buffers = inv_freqs(module)
        if not hasattr(module, "config") or any(module._buffers[name].numel() > WIDTH for name in buffers):
            continue
        with torch.device("cpu"):
            built = type(module)(config=module.config)
        for name in buffers:
            label = label_of(name)
            scaling = getattr(built, f"{label}_attention_scaling" if label else "attention_scaling", 1.0)
            found.setdefault(label, (built._buffers[name], float(scaling)))
    return found


def _theta(parameters: dict[str, Any], spectrum: tuple[Tensor, float] | None) -> float | None:
    given = parameters.get("rope_theta")
    if isinstance(given, int | float) and not isinstance(given, bool):
        return float(given)
    if spectrum is None:
        return None
    inv_freq, pairs = spectrum[0].double(), spectrum[0].numel()
    return float(inv_freq[1] ** -pairs) if pairs > 1 and float(inv_freq[1]) > 0 else None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
