"""What is known of a running forward besides positions: its draw, its pads, its tokens; for those who read positions in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from pospatch.engine._cache import self_attention
from pospatch.engine._calls import here, named
from pospatch.engine._follow import keep
from pospatch.errors import UnsupportedHost
from pospatch.methods._base import Forward, Index

__all__ = ["FORWARD", "NOTHING", "Watch"]

FORWARD = "pospatch_forward"  # the keyword under which a forward's facts travel to the attention modules
NOTHING = Forward()
TOKENS = "_pospatch_tokens"


@dataclass
class Watch:
    """What is known of the forward that is running in one module, by thread, for those who read positions below it.

    Tables and rotary modules outside the blocks are called once a forward, so nothing here outlives it. What is read inside a
    block, which gradient checkpointing may run again later, gets the same facts with its keyword arguments instead.

    carried: True where attention modules below read positions.
    """

    method: Index
    carried: bool = False
    now: dict[int, Forward] = field(default_factory=dict)

    def begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook: notes the call's rows, pads and tokens; in training draws a seed from torch's own generator."""
        forward = self._facts(module, args, kwargs) if self.needed(module.training) else NOTHING
        if forward is not NOTHING:
            self.now[here()] = forward
        return (args, {**kwargs, FORWARD: forward}) if self.carried else None

    def ends(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook: forgets; the cache that was filled keeps the tokens."""
        if not self.needed(module.training):
            return
        forward = self.now.pop(here(), None)
        if self.method.by_token and forward is not None:
            cache = self_attention(getattr(output, "past_key_values", None))
            if cache is not None and forward.tokens is not None:
                keep(cache, TOKENS, forward.tokens)

    def needed(self, training: bool) -> bool:
        """True where the method needs more than positions."""
        return self.method.by_row or self.method.by_token or (training and self.method.training_only)

    def forward(self, training: bool, carried: Forward | None = None) -> Forward:
        """What is known of this call's forward."""
        if not self.needed(training):
            return NOTHING
        found = carried if carried is not None else self.now.get(here())
        if found is None or found is NOTHING:
            raise UnsupportedHost(
                f"{self.method.name} was asked for positions outside a forward of the model, as happens where gradient "
                "checkpointing repeats a block that makes its own positions; train this model without checkpointing"
            )
        return found

    def _facts(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Forward:
        call, method = named(module, args, kwargs), self.method
        drawing = module.training and method.training_only
        cache = self_attention(call.get("past_key_values"))
        seen = int(cache.get_seq_length()) if cache is not None else 0
        if drawing and seen > 0:
            raise UnsupportedHost(
                f"{method.name} draws new positions for each forward in training mode, and this one goes on from a "
                "cache; call model.eval() to generate"
            )
        ids, embeds = call.get("input_ids"), call.get("inputs_embeds")
        inputs = ids if ids is not None else embeds
        if inputs is None:
            return NOTHING
        mask = call.get("attention_mask")
        flat = torch.is_tensor(mask) and mask.dim() == 2
        real = mask[:, -inputs.shape[1] :].bool() if flat else None  # type: ignore[index]
        return Forward(
            seed=int(torch.randint(2**62, (), device="cpu")) if drawing else None,
            rows=inputs.shape[0],
            real=real,
            tokens=_tokens(method, ids, real, cache, seen) if method.by_token else None,
        )


def _tokens(method: Index, ids: Tensor | None, real: Tensor | None, cache: Any, seen: int) -> Tensor:
    """Ids of all tokens so far, those of the cache first; -1 at pads."""
    if ids is None:
        raise UnsupportedHost(f"{method.name} reads token ids, and this call came with inputs_embeds; give input_ids")
    own = ids if real is None else ids.masked_fill(~real, -1)
    if seen == 0:
        return own
    past = vars(cache).get(TOKENS)
    if past is None or past.shape[0] != ids.shape[0] or past.shape[1] < seen:
        raise UnsupportedHost(
            f"{method.name} reads all token ids from the start, and the cache of {seen} tokens was not filled by this "
            "patched model with input_ids; run the whole text again without it"
        )
    return torch.cat((past[:, :seen], own), dim=1)
