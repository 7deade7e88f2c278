"""What was changed, recorded as it is done, played back in reverse by `remove`.

Records are plain objects without closures, so that a patched model can be copied and pickled with its way back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch.nn as nn

__all__ = ["Undo"]

_ABSENT = "<absent>"


@dataclass
class Undo:
    """A list of changes to modules, undone last first."""

    steps: list[tuple[Any, ...]] = field(default_factory=list)

    def set_module(self, parent: nn.Module, name: str, new: nn.Module) -> None:
        """Replace a child module; keeps its place in the order of the state dict."""
        self.steps.append(("module", parent, name, parent._modules[name]))
        parent._modules[name] = new.train(self.steps[-1][3].training)

    def add_module(self, parent: nn.Module, name: str, new: nn.Module) -> None:
        """Add a child module that was not there."""
        parent.add_module(name, new.train(parent.training))
        self.steps.append(("added", parent, name))

    def set_parameter(self, parent: nn.Module, name: str, new: nn.Parameter) -> None:
        """Replace a parameter under its name."""
        self.steps.append(("parameter", parent, name, parent._parameters[name]))
        parent._parameters[name] = new

    def set_buffer(self, parent: nn.Module, name: str, new: Any) -> None:
        """Replace a buffer under its name."""
        self.steps.append(("buffer", parent, name, parent._buffers[name]))
        parent._buffers[name] = new

    def swap_buffer(self, parent: nn.Module, name: str, new: nn.Parameter) -> None:
        """Let a parameter stand where a buffer stood."""
        self.steps.append(("swapped", parent, name, parent._buffers[name], list(parent._buffers)))
        del parent._buffers[name]
        parent._parameters[name] = new

    def set_attribute(self, owner: Any, name: str, new: Any) -> None:
        """Set an instance attribute; an absent one is deleted again."""
        self.steps.append(("attribute", owner, name, vars(owner).get(name, _ABSENT)))
        vars(owner)[name] = new

    def set_class(self, owner: nn.Module, new: type) -> None:
        """Give a module another class, one that inherits from its own."""
        self.steps.append(("class", owner, type(owner)))
        owner.__class__ = new

    def freeze(self, parameter: nn.Parameter) -> None:
        """Take a parameter out of training; DDP raises for parameters that no forward uses."""
        self.steps.append(("grad", parameter, parameter.requires_grad))
        parameter.requires_grad_(False)

    def hook(self, handle: Any) -> None:
        """Remember the handle of a registered hook."""
        self.steps.append(("hook", handle))

    def play(self) -> None:
        """Undo everything, last change first."""
        while self.steps:
            kind, owner, *rest = self.steps.pop()
            if kind == "hook":
                owner.remove()
            elif kind == "grad":
                owner.requires_grad_(rest[0])
            elif kind == "class":
                owner.__class__ = rest[0]
            elif kind == "added":
                del owner._modules[rest[0]]
            elif kind == "attribute" and isinstance(rest[1], str) and rest[1] == _ABSENT:
                vars(owner).pop(rest[0], None)
            elif kind == "attribute":
                vars(owner)[rest[0]] = rest[1]
            elif kind == "parameter":
                _follow(owner, owner._parameters[rest[0]], rest[1])
                owner._parameters[rest[0]] = rest[1]
            elif kind == "swapped":
                _swap_back(owner, *rest)
            elif kind == "buffer":
                now = owner._buffers[rest[0]]
                follows = now is not None and now.is_floating_point() and rest[1].is_floating_point()
                dtype = now.dtype if follows else rest[1].dtype
                owner._buffers[rest[0]] = rest[1] if now is None else rest[1].to(device=now.device, dtype=dtype)
            else:
                restored, now = rest[1], owner._modules[rest[0]]
                owner._modules[rest[0]] = restored
                _follow_module(now, restored)


def _swap_back(owner: nn.Module, name: str, buffer: Any, order: list[str]) -> None:
    """The buffer again, in its place among the others."""
    now = owner._parameters.pop(name)
    held = {**owner._buffers, name: buffer if now is None else buffer.to(device=now.device, dtype=now.dtype)}
    owner._buffers.clear()
    owner._buffers.update({key: held[key] for key in order if key in held})


def _follow(owner: nn.Module, now: Any, before: nn.Parameter) -> None:
    """Give a parameter that was set aside the device and dtype that the model was moved to meanwhile."""
    if now is not None and (now.device != before.device or now.dtype != before.dtype):
        before.data = before.data.to(device=now.device, dtype=now.dtype)


def _follow_module(now: nn.Module, restored: nn.Module) -> None:
    moved = getattr(now, "moved_like", None)
    if moved is not None:
        moved(restored)
