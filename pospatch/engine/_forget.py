"""Keys that no later query sees leave the cache, so that a method of a window and sinks reads without end in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from pospatch.errors import BadOption, UnsupportedHost
from pospatch.methods._base import Bands

if TYPE_CHECKING:
    from pospatch.engine._state import Call

__all__ = ["BoundedLayer", "announce", "forget"]

SLACK = 64  # tokens by which a cache may be cut back, and that are gathered before keys are moved
DRAFT = 4  # times as many end a longer call, as a draft that may be taken back whole


class BoundedLayer(DynamicLayer):
    """A layer of a dynamic cache that counts all tokens and holds the keys of some: masks have their whole length.

    held: the indices (count,) of the tokens whose keys are here, among the `total` tokens.
    reader: the method that its next call reads it by, None where none of ours does.
    """

    keys: Any
    values: Any

    def __init__(self, layer: Any, method: Bands) -> None:
        super().__init__()
        self.__dict__.update(vars(layer))
        self.method = method
        self.reader: Any = None
        self.total = self.keys.shape[-2]
        self.held = torch.arange(self.total, device=self.keys.device)
        self.shortest = 0  # the length down to which no query misses a key
        self.full = 0  # the length at which there may be enough to let go

    def get_seq_length(self) -> int:
        """All tokens, those whose keys are gone among them."""
        return self.total if self.is_initialized else 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As ever; the new tokens are counted.

        Raises:
            UnsupportedHost: keys are gone that whoever reads here would see.
        """
        reader, self.reader = self.reader, None
        if len(self.held) < self.total and reader != self.method:
            raise UnsupportedHost(
                f"{self.total - len(self.held)} keys have left this cache that {self.method.name} does not see any more, and "
                f"{'a model without it' if reader is None else reader.name} would; read the text again from its start"
            )
        new = key_states.shape[-2]
        self.held = torch.cat((self.held, torch.arange(self.total, self.total + new, device=self.held.device)))
        self.total += new
        return super().update(key_states, value_states, *args, **kwargs)

    def crop(self, tokens_to_remove: int) -> None:
        """Take the last tokens off.

        Raises:
            BadOption: queries from there on would see keys that are gone.
        """
        left = self.total - abs(tokens_to_remove)
        if left < self.shortest:
            raise BadOption(
                f"this cache of {self.total} tokens was to be cut to {left}, and keys that are seen from there have left it "
                f"(it can be cut to {self.shortest}); read the text again from its start"
            )
        super().crop(tokens_to_remove)
        self.total, self.held = left, self.held[self.held < left]

    def reset(self) -> None:
        """Empty, as at first."""
        super().reset()
        self.total, self.held, self.shortest, self.full = 0, self.held[:0], 0, 0

    def let_go(self, seen: Tensor, slack: int) -> None:
        """Keep the keys that are `seen` from `slack` tokens back, bool (held,), once enough are not; each further token hides
        one at most."""
        seen = seen.to(self.keys.device)  # an offloaded cache has moved them
        hidden = int((~seen).sum())
        self.full = self.total + max(1, SLACK - hidden)
        if hidden >= SLACK:
            self.keys, self.values = self.keys[:, :, seen], self.values[:, :, seen]
            self.held, self.shortest = self.held[seen.to(self.held.device)], self.total - slack
            self.full = self.total + SLACK


def announce(call: Call, layer: int) -> None:
    """Tell a layer that has let keys go who reads it now; a compiled call, which does not know where keys stand, does not."""
    held = _layer(call, layer)
    if type(held) is BoundedLayer and call.record is not None:
        held.reader = call.state.score


def forget(call: Call, layer: int) -> Tensor | None:
    """Let the layer of this call's cache go of what its queries do not see any more.

    Returns:
        The indices of the tokens whose keys this call was given, (key,), or None where it is all of them.
    """
    method, record, bounded = call.state.score, call.record, _layer(call, layer)
    if not isinstance(method, Bands) or not method.forgets or record is None:
        return None
    if type(bounded) not in (DynamicLayer, BoundedLayer):
        return None  # static, quantized and sliding layers have a size of their own
    if type(bounded) is DynamicLayer:
        bounded = call.cache.layers[layer] = BoundedLayer(bounded, method)
    given = bounded.held
    if bounded.total >= bounded.full:
        slack = min(max(SLACK, call.positions.shape[1]), DRAFT * SLACK)
        earliest = record[:, -1:] + 1 - slack
        seen = method.visible(earliest, record[:, given], call.state.geometry)
        assert seen is not None  # what forgets hides
        bounded.let_go(seen[:, 0].any(dim=0), slack)
    return given if given.shape[0] < record.shape[1] else None


def _layer(call: Call, index: int) -> Any:
    """A layer of this call's cache, or None where it has none of that index yet."""
    layers = getattr(call.cache, "layers", [])
    return layers[index] if index < len(layers) else None
