"""Logits of any causal language model in slices of the sequence: length x vocabulary never exists at once.

Softcaps, logit scales and projections live in the model's own forward, between its decoder and its logits, and differ
by family. So nothing is restated here: the whole model runs once with its decoder's output kept back, then once per
slice with the decoder replaced by a function that hands out that slice. A short forward proves both runs against plain
ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pospatch.errors import UnsupportedHost

__all__ = ["SlicedHead", "evaluating"]

_PROBE = 24  # tokens of the short forward
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # of 1 + the largest logit; coarser dtypes: 0.05


class SlicedHead:
    """A causal model's hidden states in one pass, its logits slice by slice.

    Args:
        model: a PreTrainedModel with a language-model head, possibly wrapped by peft.
        size: tokens per slice; logits take size x vocabulary x 4 bytes.

    Raises:
        UnsupportedHost: no head, not causal, or the slices' logits are not the model's own.
    """

    def __init__(self, model: Any, size: int = 256) -> None:
        self.model, self.size = model, size
        with evaluating(model):
            ids = torch.arange(1, _PROBE + 1, device=self.device) % self._vocabulary()
            self.decoder = self._find_decoder(ids[None])

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the input embedding."""
        return self.model.get_input_embeddings().weight.device

    def hidden(self, ids: Tensor, on_layer: Callable[[], None] | None = None) -> Any:
        """The decoder's output for `ids` (batch, length); `on_layer` is called after every layer."""
        with _hooked_layers(self.decoder, on_layer), evaluating(self.model):
            return self._run_decoder(self.decoder, ids)

    def logits(self, ids: Tensor, output: Any, start: int, end: int) -> Tensor:
        """Float32 logits (batch, end - start, vocabulary) at positions start..end, from what `hidden` returned."""
        with evaluating(self.model):
            return self._run_head(self.decoder, ids, output, start, end)

    def losses(self, ids: Tensor, start: int = 0, on_layer: Callable[[], None] | None = None) -> Tensor:
        """Negative log-likelihoods in nats of the tokens start+1..length-1 of `ids` (1, length), float32 on the CPU."""
        output = self.hidden(ids, on_layer)
        length = ids.shape[1]
        pieces = []
        for left in range(start, length - 1, self.size):
            right = min(left + self.size, length - 1)
            logits = self.logits(ids, output, left, right)[0]
            target = ids[0, left + 1 : right + 1].to(logits.device)
            pieces.append(nn.functional.cross_entropy(logits, target, reduction="none").cpu())
        return torch.cat(pieces)

    def _vocabulary(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[0])

    def _find_decoder(self, ids: Tensor) -> nn.Module:
        name = type(self.model).__name__
        if getattr(self.model.config, "is_encoder_decoder", False):
            raise UnsupportedHost(
                f"{name} is an encoder-decoder; this needs a causal language model (AutoModelForCausalLM)"
            )
        plain = getattr(self.model(input_ids=ids, use_cache=False), "logits", None)
        if plain is None or plain.shape[:2] != ids.shape or plain.shape[2] < self._vocabulary() // 2:
            raise UnsupportedHost(f"{name} gives no logits over the vocabulary; load it with AutoModelForCausalLM")
        limit = _TOLERANCE.get(plain.dtype, 0.05) * (1 + plain.abs().max().item())
        self._refuse_non_causal(ids, plain, limit / 10)  # the same sums in the same order: next to no rounding
        for decoder in _candidates(self.model):
            if self._agrees(decoder, ids, plain.float(), limit):
                return decoder
        raise UnsupportedHost(
            f"the logits of {name} could not be computed in slices: no module of it hands one hidden state to its head"
        )

    def _refuse_non_causal(self, ids: Tensor, plain: Tensor, limit: float) -> None:
        changed = ids.clone()
        changed[:, -1] = 0
        other = self.model(input_ids=changed, use_cache=False).logits
        difference = (other - plain)[:, :-1].abs().max().item()
        if difference > limit:
            raise UnsupportedHost(
                f"{type(self.model).__name__} is not causal: changing the last token moved earlier logits by "
                f"{difference:.2g}; the likelihood of a text needs a causal language model"
            )

    def _agrees(self, decoder: nn.Module, ids: Tensor, plain: Tensor, limit: float) -> bool:
        output = self._run_decoder(decoder, ids)
        if output is None:
            return False
        middle = _PROBE // 3
        pieces = [self._run_head(decoder, ids, output, *ends) for ends in ((0, middle), (middle, _PROBE))]
        sliced = torch.cat(pieces, dim=1)
        return sliced.shape == plain.shape and (sliced - plain).abs().max().item() <= limit

    def _run_decoder(self, decoder: nn.Module, ids: Tensor) -> Any:
        kept: list[Any] = []
        own = decoder.forward

        def keep(*args: Any, **kwargs: Any) -> Any:
            output = own(*args, **kwargs)
            hidden = getattr(output, "last_hidden_state", None)
            if hidden is None or hidden.shape[:2] != ids.shape:
                return output
            kept.append(output)
            return type(output)(last_hidden_state=hidden[:, -1:])  # the head then computes one position only

        with _forward_replaced(decoder, keep):
            self.model(input_ids=ids, use_cache=False)
        return kept[0] if len(kept) == 1 else None

    def _run_head(self, decoder: nn.Module, ids: Tensor, output: Any, start: int, end: int) -> Tensor:
        piece = type(output)(last_hidden_state=output.last_hidden_state[:, start:end])
        with _forward_replaced(decoder, lambda *args, **kwargs: piece):
            logits: Tensor = self.model(input_ids=ids[:, start:end], use_cache=False).logits
        return logits.float()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients and no dropout inside; every module's training flag is put back."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, flag in flags:
            module.training = flag


def _candidates(model: Any) -> list[nn.Module]:
    """Modules that may hand the hidden state to the head, outermost first."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    found = [
        inner.base_model,
        getattr(inner, "get_decoder", lambda: None)(),
        getattr(inner.base_model, "decoder", None),
    ]
    unique: dict[int, nn.Module] = {
        id(each): each for each in found if isinstance(each, nn.Module) and each is not inner
    }
    return list(unique.values())


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = module.__dict__.get("forward")  # set by accelerate's hooks, for instance
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own


@contextmanager
def _hooked_layers(decoder: nn.Module, on_layer: Callable[[], None] | None) -> Iterator[None]:
    layers = layer_list(decoder) if on_layer is not None else []
    handles = [layer.register_forward_hook(lambda *_: on_layer()) for layer in layers]  # type: ignore[misc]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layer_list(decoder: nn.Module) -> list[nn.Module]:
    """The longest module list: the layers, counted for the progress bar only."""
    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))  # type: ignore[arg-type]
