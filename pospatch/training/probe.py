"""A forward that shows whether packed documents see each other; what is built to keep them apart may be dropped on the way."""

from __future__ import annotations

from typing import Any

import torch

from pospatch.errors import UnsupportedHost

__all__ = ["check_documents"]

_LONGEST = 96  # tokens of the forward
_FLOOR = 1e-3  # as a share of what changes where it may; what other kernels round differently stays far below


@torch.no_grad()
def check_documents(model: Any, length: int) -> None:
    """Change one of three packed documents after another and see that the other two stay as they are.

    Raises:
        UnsupportedHost: a document sees another, or does not see itself.
    """
    size = max(2, min(length, _LONGEST) // 3)
    device = next(model.parameters()).device
    positions = torch.arange(size, device=device).repeat(3)[None]
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = torch.arange(3 * size, device=device)[None] % (vocabulary - 1)
    training = model.training
    model.eval()
    try:
        plain = _outputs(model, ids, positions)
        for changed in range(3):
            own = slice(changed * size, (changed + 1) * size)
            other = ids.clone()
            other[:, own] = vocabulary - 1 - other[:, own] % (vocabulary // 2)
            _compare(plain, _outputs(model, other, positions), own, changed)
    finally:
        model.train(training)


def _outputs(model: Any, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    output = model(input_ids=ids, position_ids=positions, use_cache=False)
    found: torch.Tensor = output.logits if "logits" in output else output.last_hidden_state
    return found.float()


def _compare(plain: torch.Tensor, other: torch.Tensor, own: slice, changed: int) -> None:
    moved = (plain - other).abs().amax(dim=(0, 2))
    inside = float(moved[own].max())
    moved[own] = 0.0
    if not inside > 0.0:
        raise UnsupportedHost(
            "packed documents: a change of a document's tokens changes nothing; the model reads no tokens"
        )
    if float(moved.max()) > _FLOOR * inside:
        raise UnsupportedHost(
            f"packed documents see each other: a change of document {changed} moves the logits of others by "
            f"{float(moved.max()):.2g} (its own by {inside:.2g}). This model does not read positions that start again as "
            "documents; set documents: sliding or concat"
        )
