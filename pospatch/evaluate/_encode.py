"""Sentence embeddings of token ids: any encoder, pooled and normalised, in batches of one length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pospatch.errors import BadOption, UnsupportedHost, suggest
from pospatch.evaluate._head import evaluating

__all__ = ["POOLING", "Wrapping", "check_pooling", "embed"]

POOLING = {"mean": "mean over the tokens", "cls": "the first token", "last": "the last token"}


class Wrapping:
    """The special tokens that a tokenizer puts before and after a text."""

    def __init__(self, tokenizer: Any) -> None:
        plain = tokenizer("word", add_special_tokens=False, verbose=False)["input_ids"]
        whole = tokenizer("word", verbose=False)["input_ids"]
        start = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), None)
        if start is None:
            raise UnsupportedHost(f"{type(tokenizer).__name__} changes a text's own tokens when it adds special ones")
        self.before, self.after = whole[:start], whole[start + len(plain) :]

    @property
    def size(self) -> int:
        """How many special tokens there are."""
        return len(self.before) + len(self.after)

    def around(self, ids: Sequence[int]) -> list[int]:
        """The ids with the special tokens."""
        return [*self.before, *ids, *self.after]

    def cut(self, ids: list[int], length: int | None) -> list[int]:
        """Wrapped ids cut to `length` tokens, as a tokenizer truncates: the end special tokens stay."""
        if length is None or len(ids) <= length:
            return ids
        return [*ids[: length - len(self.after)], *self.after]


def check_pooling(pooling: str) -> None:
    """Raise where `pooling` is none of POOLING.

    Raises:
        BadOption: naming the ones there are.
    """
    if pooling not in POOLING:
        raise BadOption(f"pooling={pooling!r}.{suggest(str(pooling), POOLING)} must be one of {', '.join(POOLING)}")


def embed(
    model: Any, texts: Sequence[list[int]], pooling: str, batch: int, advance: Callable[[], None] | None = None
) -> Tensor:
    """Unit vectors (texts, width) in float32 on the CPU; only texts of one length share a batch, so nothing is padded."""
    device = model.get_input_embeddings().weight.device
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    vectors: dict[int, Tensor] = {}
    at = 0
    while at < len(order):
        group = [index for index in order[at : at + batch] if len(texts[index]) == len(texts[order[at]])]
        ids = torch.tensor([texts[index] for index in group], device=device)
        with evaluating(model):
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
            hidden = getattr(output, "last_hidden_state", None)
            if hidden is None:
                raise UnsupportedHost(f"{type(model).__name__} gives no hidden states; load it with AutoModel")
            pooled = {"mean": hidden.mean(1), "cls": hidden[:, 0], "last": hidden[:, -1]}[pooling]
            pooled = torch.nn.functional.normalize(pooled.float(), dim=-1).cpu()
        vectors.update(zip(group, pooled, strict=True))
        at += len(group)
        if advance is not None:
            for _ in group:
                advance()
    return torch.stack([vectors[index] for index in range(len(texts))])
