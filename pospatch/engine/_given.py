"""Coordinates that the caller gives to an attention module, by thread."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pospatch.engine._calls import here
from pospatch.errors import BadOption, UnsupportedHost

__all__ = ["Given"]


@dataclass
class Given:
    """(batch or 1, length), or (axes, batch or 1, length), by thread; a copy of a module has none."""

    now: dict[int, Tensor] = field(default_factory=dict)

    def __reduce__(self) -> Any:
        return Given, ()

    def read(self, hidden: Tensor) -> Tensor | None:
        """Those of this thread's call, on its device; None where this thread gave none.

        Raises:
            BadOption: they are for other tokens.
            UnsupportedHost: a compiled forward, which does not know its thread.
        """
        if not self.now:
            return None
        if torch.compiler.is_compiling():
            raise UnsupportedHost("a compiled model does not know who gave it coordinates; call it uncompiled")
        where = self.now.get(here())
        if where is None:
            return None
        if where.shape[-1] != hidden.shape[1] or where.shape[-2] not in (1, hidden.shape[0]):
            raise BadOption(
                f"coordinates are for {where.shape[-2]} sequences of {where.shape[-1]} tokens, and the call has "
                f"{hidden.shape[0]} of {hidden.shape[1]}"
            )
        return where.to(hidden.device)
