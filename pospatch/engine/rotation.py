"""The rotation site: the host's own rotary module with other frequencies, or no native rotation at all."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from pospatch.engine._seams import still_rotary
from pospatch.engine._sites import Sites, inv_freqs, label_of
from pospatch.engine._undo import Undo
from pospatch.errors import UnsupportedHost

__all__ = ["FrequencyModule", "clear", "respin"]


class FrequencyModule(nn.Module):
    """The host's rotary module, copied, with frequencies of ours: its own layout, at native cost.

    The frequencies stay float32 whatever the model is cast to, and are rebuilt when the module is materialised from meta.
    The original module stays inside, so that it goes through the same moves and can be put back.
    """

    def __init__(self, original: nn.Module, spectra: dict[str, tuple[Tensor, float]]) -> None:
        super().__init__()
        keep = {id(getattr(original, "config", None)): getattr(original, "config", None)}
        self.original = original
        self.host = copy.deepcopy(original, keep)
        self._spectra = {name: inv_freq.detach().cpu().float() for name, (inv_freq, _) in spectra.items()}
        self._amplitudes = {name: amplitude for name, (_, amplitude) in spectra.items()}
        for name, (_, amplitude) in spectra.items():
            self._set_amplitude(name, amplitude)
        self._restore()

    def _set_amplitude(self, buffer: str, amplitude: float) -> None:
        label = label_of(buffer)
        host: Any = self.host
        name = "attention_scaling" if label is None else f"{label}_attention_scaling"
        if not hasattr(host, name):
            name = "attention_scaling"
        setattr(host, name, amplitude)
        if label is None:
            host.rope_type = "default"  # what is static must not be updated by transformers' dynamic rules
        else:
            host.rope_type = {**host.rope_type, label: "default"}

    def _restore(self) -> None:
        for name, inv_freq in self._spectra.items():
            device = getattr(self.host, name).device
            self.host._buffers[name] = inv_freq.to(device)
            twin = f"{name.removesuffix('inv_freq')}original_inv_freq"
            if twin in self.host._buffers:
                self.host._buffers[twin] = inv_freq.to(device)

    def serves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """True where a call asks for a layer type whose frequencies are ours, or for the only ones there are."""
        labels = {label_of(name) for name in self._spectra}
        asked = kwargs.get("layer_type", next((value for value in args if isinstance(value, str)), None))
        return asked in labels or None in labels or asked is None

    def turns_by_spectrum(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> bool:
        """True where an output holds the cosines of one of our spectra at its last position. Some hosts compute their own, and
        some turn by the coordinates of a picture or make something else of the frequencies."""
        positions = args[1] if len(args) > 1 else kwargs.get("position_ids")
        cos = output[0] if isinstance(output, tuple) else output
        if not isinstance(positions, Tensor) or not isinstance(cos, Tensor) or positions.dim() < 2:
            return False
        cos = (cos.real if cos.is_complex() else cos)[..., -1, :].float().cpu().reshape(-1)
        position = float(positions.reshape(-1)[-1])
        error = 2e-2 if output[0].dtype in (torch.float16, torch.bfloat16) else 1e-3
        return any(
            bool(
                ((wanted := (position * inv_freq).cos() * self._amplitudes[name])[:, None] - cos)
                .abs()
                .min(1)
                .values.max()
                <= error
            )
            and wanted.numel() > 0
            for name, inv_freq in self._spectra.items()
        )

    def _apply(self, fn: Any, recurse: bool = True) -> FrequencyModule:
        super()._apply(fn, recurse)
        self._restore()
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("host"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.host(*args, **kwargs)


def respin(model: nn.Module, sites: Sites, spectra: dict[str | None, tuple[Tensor, float]], undo: Undo) -> None:
    """Give every rotary module the frequencies of its layer types.

    Raises:
        UnsupportedHost: the modules name their frequencies after something else than the layers' types.
    """
    taken = 0
    for path, module in sites.rotary.items():
        chosen = {name: spectra[label_of(name)] for name in inv_freqs(module) if label_of(name) in spectra}
        taken += len(chosen)
        if chosen:
            parent, _, name = path.rpartition(".")
            undo.set_module(model.get_submodule(parent), name, FrequencyModule(module, chosen))
    if sites.rotary and not taken:
        named = sorted({str(label_of(name)) for module in sites.rotary.values() for name in inv_freqs(module)})
        raise UnsupportedHost(
            f"{type(model).__name__} names its frequencies {named}, and its layers are of the types {sorted(map(str, spectra))}; "
            "which layer reads which is not known"
        )


def clear(sites: Sites, undo: Undo) -> None:
    """Turn every native rotation into the identity, whatever layout the family returns."""
    for module in sites.rotary.values():
        kind = vars(module).get("rope_type")
        if kind is not None:  # no update by length from a config that says something else from now on
            undo.set_attribute(
                module, "rope_type", "default" if isinstance(kind, str) else dict.fromkeys(kind, "default")
            )
        undo.hook(module.register_forward_hook(still_rotary))
