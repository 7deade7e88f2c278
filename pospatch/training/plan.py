"""What a run is going to do, in a few lines, before it does it."""

from __future__ import annotations

from typing import Any

from pospatch.api import unwrap
from pospatch.training.arguments import Arguments

__all__ = ["lines", "rows"]


def rows(args: Any) -> int:
    """Sequences of a step, over all devices and accumulated batches."""
    return int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)


def lines(arguments: Arguments, model: Any, data: dict[str, Any], scheme: str) -> list[str]:
    """The plan."""
    args = arguments.training
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in model.parameters())
    stack = [f"{name}({options})" for name, options in arguments.model.stack]
    return [
        f"processes: {args.world_size} ({scheme}), device {args.device}, bf16 {bool(args.bf16)}",
        f"model: {type(unwrap(model)).__name__}, patch: {' + '.join(stack) or 'none'}",
        f"tuning: {arguments.tune.tuning}, {trained:,} of {every:,} numbers are trained",
        f"data: {data['text']}, {data['sequences']} sequences of {data['sequence_length']} tokens "
        f"({data['documents']}); a step takes {rows(args)}",
    ]
