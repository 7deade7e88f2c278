"""Next-token loss in slices: length x vocabulary logits never exist at once, neither forward nor backward.

The slices' logits come from the model's own forward, as in pospatch.evaluate, whose proof runs here too: what is trained is
the same function of the weights as the model's own loss, summed in another order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pospatch.api import unwrap
from pospatch.errors import UnsupportedHost
from pospatch.evaluate._head import SlicedHead, _forward_replaced

__all__ = ["SlicedLoss", "install"]


def install(model: Any, size: int) -> SlicedLoss | None:
    """Let the model compute its loss in slices of `size` positions whenever it is given labels; returns the installed one.

    `model` may be wrapped by peft. With size 0 nothing is changed: the model's own loss, all logits at once.

    Raises:
        UnsupportedHost: not causal, or the slices' logits are not the model's own; or a loss of several terms.
    """
    if size == 0:
        return None
    inner = unwrap(model)
    name = type(inner).__name__
    if getattr(inner.config.get_text_config(), "output_router_logits", False):
        raise UnsupportedHost(
            f"{name} adds a router loss (output_router_logits), which slices would leave out; set loss_slice: 0"
        )
    try:
        head = SlicedHead(inner, size)
    except UnsupportedHost as error:
        raise UnsupportedHost(
            f"{error}. Fine-tuning predicts the next token; if {name} is causal all the same, set loss_slice: 0 for its own loss"
        ) from error
    sliced = SlicedLoss(inner, head.decoder, size)
    vars(inner)["forward"] = sliced
    return sliced


class SlicedLoss:
    """Stands as the forward of one model: with labels the loss in slices, without labels the model as it is."""

    def __init__(self, model: Any, decoder: nn.Module, size: int) -> None:
        self.model, self.decoder, self.size = model, decoder, size
        self._own: Any = type(model).forward

    def remove(self) -> None:
        """Give the model its own forward back."""
        vars(self.model).pop("forward", None)

    def __call__(
        self,
        input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The model's output; with labels (batch, length; -100 is not scored) its `loss` in nats a token, and no logits.

        The loss is the mean over the scored tokens, or their sum divided by `num_items_in_batch`. `shift_labels` are the
        labels of the next tokens already, as they must be where a process holds a part of each sequence.
        """
        from transformers.modeling_outputs import CausalLMOutput

        if labels is None or input_ids is None:
            return self._own(self.model, input_ids=input_ids, labels=labels, shift_labels=shift_labels, **kwargs)
        output = self._hidden(input_ids, kwargs)
        targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100) if shift_labels is None else shift_labels
        total = torch.zeros((), device=input_ids.device)
        for start in range(0, input_ids.shape[1], self.size):
            piece = slice(start, start + self.size)
            if (targets[:, piece] != -100).any():
                total = total + self._slice(input_ids[:, piece], output, targets[:, piece], piece).to(total.device)
        count = (targets != -100).sum() if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutput(loss=total / torch.as_tensor(count, device=total.device))

    def _hidden(self, ids: Tensor, kwargs: dict[str, Any]) -> Any:
        """The decoder's output, caught on its way to the head, which is given one position to keep it busy."""
        kept: list[Any] = []
        own = self.decoder.forward

        def keep(*args: Any, **inputs: Any) -> Any:
            output = own(*args, **inputs)
            kept.append(output)
            return type(output)(last_hidden_state=output.last_hidden_state[:, -1:].detach())

        with _forward_replaced(self.decoder, keep):
            self._own(self.model, input_ids=ids, **{**kwargs, "use_cache": False, "return_dict": True})
        return kept[0]

    def _slice(self, ids: Tensor, output: Any, targets: Tensor, piece: slice) -> Tensor:
        """Sum of the losses of one slice; its logits are computed again in the backward pass."""
        hidden = output.last_hidden_state[:, piece]
        return checkpoint(self._losses, ids, hidden, type(output), targets, use_reentrant=False)  # type: ignore[no-any-return]

    def _losses(self, ids: Tensor, hidden: Tensor, kind: type, targets: Tensor) -> Tensor:
        with _forward_replaced(self.decoder, lambda *args, **kwargs: kind(last_hidden_state=hidden)):
            logits: Tensor = self._own(self.model, input_ids=ids, use_cache=False, return_dict=True).logits
        return nn.functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten().to(logits.device), ignore_index=-100, reduction="sum"
        )
