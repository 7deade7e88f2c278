"""A patched model between what it was and what it is: the new encoding counts with share a, the old one with 1 - a.

Each site by itself: rows of a table (1 - a) * old; the angles of a new rotation a * new, and the old one mixed with none; spectra
between the two; a bias, and what a contextual method adds to the logits, a * new; a factor of q, 1 + a * (new - 1). With a = 0
the model is the unpatched one, with a = 1 the patched one. Index methods that draw positions in training are not turned: they
stand whole from the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pospatch.api import patch_of, unwrap
from pospatch.engine._seams import NOTE, still_rotary
from pospatch.engine._state import State
from pospatch.engine.embedding import EmptyTable
from pospatch.engine.rotation import FrequencyModule
from pospatch.errors import UnsupportedHost
from pospatch.methods._base import (
    Bands,
    Bias,
    Block,
    Contextual,
    Embedding,
    Index,
    Method,
    Norm,
    QueryScale,
    SummedBias,
    SummedRotation,
    Weights,
)

__all__ = ["Fade"]


_WHY = {
    "positions": "gives whole positions",
    "embedding": "gives rows that begin as the old ones or are learnt from nothing",
    "score": "reads distances anew",
    "norm": "brings q and k to one size",
}


@dataclass
class Fade:
    """The hooks of one fade; `share` is a, what the new encoding counts."""

    model: Any
    share: float = 1.0
    _undo: list[Callable[[], Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raises UnsupportedHost where the old or the new encoding has no share that could be turned."""
        inner, patch = unwrap(self.model), patch_of(self.model)
        if patch is None or patch.found is None:
            raise UnsupportedHost("graft: fade needs a patch; the model carries none")
        for method in patch.stack:
            drawn = isinstance(method, Index) and method.training_only
            if not drawn and isinstance(method, Index | Embedding | Bands | Norm):
                raise UnsupportedHost(
                    f"graft: fade cannot turn {method.name}, which {_WHY[method.slot]}; use graft: swap"
                )
        for module in list(inner.modules()):
            if isinstance(module, FrequencyModule):
                self._spectrum(module)
            elif isinstance(module, State):
                self._state(module)
            elif still_rotary in module._forward_hooks.values():
                self._old_rotation(module)
        for table in patch.found.tables:
            standing = table.parent._modules.get(table.name)
            if isinstance(standing, EmptyTable):
                self._old_table(standing, table.module)
            elif table.inner:
                raise UnsupportedHost(
                    f"graft: fade cannot turn {table.path}, which its owner reads itself; use graft: swap"
                )

    def remove(self) -> None:
        """Leave the patched model as it was."""
        self.share = 1.0
        for undo in reversed(self._undo):
            undo()
        self._undo = []

    def _old_table(self, standing: nn.Module, old: nn.Module) -> None:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            return output if self.share >= 1 else (1 - self.share) * old(*args, **kwargs)

        self._undo.append(standing.register_forward_hook(hook, with_kwargs=True).remove)

    def _old_rotation(self, module: nn.Module) -> None:
        """The rotation between the old one and none: cosines and sines of both, in their shares."""
        kept: list[Any] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            kept[:] = [output] if self.share < 1 else []

        def mix(module: nn.Module, args: Any, output: Any) -> Any:
            if self.share >= 1:
                return output
            old, new = (each if isinstance(each, tuple) else (each,) for each in (kept.pop(), output))
            mixed = tuple(torch.lerp(a, b, self.share) for a, b in zip(old, new, strict=True))
            if hasattr(new[0], NOTE):
                setattr(mixed[0], NOTE, getattr(new[0], NOTE))
            return mixed if isinstance(output, tuple) else mixed[0]

        self._undo.append(module.register_forward_hook(keep, prepend=True).remove)
        self._undo.append(module.register_forward_hook(mix).remove)

    def _spectrum(self, module: FrequencyModule) -> None:
        host: Any = module.host
        names = [name for name in host._buffers if name.endswith("inv_freq") and "original" not in name]
        pairs = {name: (module.original._buffers[name], host._buffers[name]) for name in names}
        scales = {
            name: (getattr(module.original, name), value) for name, value in vars(host).items() if _is_scale(name)
        }

        def turn(*args: Any) -> None:
            at = self.share
            for name, (old, new) in pairs.items():
                host._buffers[name] = new if at >= 1 else torch.lerp(old.float(), new, at)  # type: ignore[union-attr,arg-type]
            for name, (old, new) in scales.items():
                setattr(host, name, new if at >= 1 else old + at * (new - old))

        self._undo.append(module.register_forward_pre_hook(turn).remove)
        self._undo.append(turn)

    def _state(self, state: State) -> None:
        if state.still or state.drop_bias or state.silenced:
            raise UnsupportedHost(
                "graft: fade cannot turn what only some layers clear, nor a bias of the model's own; use swap"
            )
        own = state.rotate
        if state.rotary is not None:
            self._check_rotation(state)

            def rotate(x: Tensor, positions: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                return own(x, positions if self.share >= 1 else positions * self.share, *args, **kwargs)

            vars(state)["rotate"] = rotate
            self._undo.append(lambda: vars(state).pop("rotate"))
        if (method := state.score) is not None:
            state.methods["score"] = _faded(method, self)
            self._undo.append(lambda: state.methods.update(score=method))
        if (scale := state.temperature) is not None:
            state.methods["temperature"] = _faded(scale, self)
            self._undo.append(lambda: state.methods.update(temperature=scale))

    def _check_rotation(self, state: State) -> None:
        """At position 0 nothing may be turned, or a share of 0 would not be the old model."""
        geometry = state.geometry
        x = torch.ones(1, geometry.heads, 1, geometry.head_dim, device=next(self.model.parameters()).device)
        start = torch.zeros(1, 1, dtype=torch.long, device=x.device)
        turned = state.rotate(x, start, "query", None if state.early else start + 2 * geometry.length)
        if turned.shape != x.shape or not torch.allclose(turned, state.paired(x), atol=1e-3):
            name = state.rotary.name if state.rotary is not None else ""
            raise UnsupportedHost(
                f"graft: fade cannot turn {name}, which changes q and k at position 0 too; use graft: swap"
            )


def _is_scale(name: str) -> bool:
    return name.endswith("attention_scaling")


def _faded(method: Method, fade: Fade) -> Method:
    """A method whose contribution counts with the share of a fade; everything else it is asked for is its own."""
    kinds: list[tuple[type, type]] = [
        (Bias, _FadedBias), (SummedBias, _FadedSum), (SummedRotation, _FadedTurn), (Contextual, _FadedLogits),
        (QueryScale, _FadedScale),
    ]  # fmt: skip
    made: Any = object.__new__(next(faded for kind, faded in kinds if isinstance(method, kind)))
    for name, value in {**vars(method), "inner": method, "fade": fade}.items():
        object.__setattr__(made, name, value)
    return made


_CHANGED = ("bias", "profile", "logits", "state", "angles", "factor_at")


class _Faded(Method):
    inner: Any
    fade: Fade

    def __getattribute__(self, name: str) -> Any:
        mine = name.startswith("__") or name in ("inner", "fade") or name in _CHANGED
        return object.__getattribute__(self, name) if mine else getattr(object.__getattribute__(self, "inner"), name)


class _FadedBias(_Faded, Bias):
    def bias(self, query_positions: Tensor, key_positions: Tensor, weights: Weights, geometry: Any) -> Tensor:
        found: Tensor = self.inner.bias(query_positions, key_positions, weights, geometry)
        return self.fade.share * found

    def profile(self, weights: Weights, geometry: Any) -> Callable[[Tensor], Tensor] | None:
        inner, share = self.inner.profile(weights, geometry), self.fade.share
        return None if inner is None else lambda distance: share * inner(distance)


class _FadedSum(_Faded, SummedBias):
    def state(self, hidden: Tensor, weights: Weights, geometry: Any) -> Tensor:
        found: Tensor = self.inner.state(hidden, weights, geometry)
        return self.fade.share * found

    def logits(self, block: Block, weights: Weights, geometry: Any) -> Tensor:
        found: Tensor = self.inner.logits(block, weights, geometry)
        return found


class _FadedTurn(_Faded, SummedRotation):
    def state(self, hidden: Tensor, weights: Weights, geometry: Any) -> Tensor:
        found: Tensor = self.inner.state(hidden, weights, geometry)
        return found

    def angles(self, state: Tensor, weights: Weights, geometry: Any, documents: Tensor | None = None) -> Tensor:
        found: Tensor = self.inner.angles(state, weights, geometry, documents)
        return self.fade.share * found


class _FadedLogits(_Faded, Contextual):
    def state(self, hidden: Tensor, weights: Weights, geometry: Any) -> Tensor | None:
        found: Tensor | None = self.inner.state(hidden, weights, geometry)
        return found

    def logits(self, block: Block, weights: Weights, geometry: Any) -> Tensor:
        found: Tensor = self.inner.logits(block, weights, geometry)
        return torch.lerp(block.scores, found, self.fade.share)


class _FadedScale(_Faded, QueryScale):
    def factor_at(self, query_positions: Tensor, geometry: Any) -> Tensor:
        found: Tensor = self.inner.factor_at(query_positions, geometry)
        return 1 + self.fade.share * (found - 1)
