"""What a run is going to do, in a few lines, before it does it."""

from __future__ import annotations

from typing import Any

from pospatch.api import unwrap
from pospatch.evaluate._limits import available_memory
from pospatch.training.arguments import Arguments

__all__ = ["lines", "memory", "rows", "seconds"]


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
        memory(arguments, model, trained),
    ]


def memory(arguments: Arguments, model: Any, trained: int) -> str:
    """Bytes of weights, gradients, AdamW's two moments and activations of one process; what a scheme shards is not taken off."""
    args, config = arguments.training, unwrap(model).config.get_text_config()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    tokens = args.train_batch_size * arguments.data.sequence_length
    item = 2 if args.bf16 or args.fp16 else next(model.parameters()).element_size()
    layer = tokens * config.hidden_size * item  # one tensor of hidden states; a layer keeps about 17 of them
    activations = layer * (config.num_hidden_layers + 17 if _recomputes(args) else 17 * config.num_hidden_layers)
    distills = arguments.distill is not None
    shown = (
        arguments.data.sequence_length
        if distills
        else min(arguments.tune.loss_slice or arguments.data.sequence_length, arguments.data.sequence_length)
    )
    logits = 8 * args.train_batch_size * shown * config.vocab_size
    if distills:  # the teacher's weights and its logits beside the student's
        weights, logits = 2 * weights, 2 * logits
    needed = weights + 12 * trained + activations + logits
    free = available_memory(args.device)
    of = f" of {free / 2**30:.1f} GiB free" if free is not None else ""
    warning = (
        "" if free is None or needed < free else ": MORE THAN THERE IS; shorten sequences, or checkpoint activations"
    )
    return f"memory: about {needed / 2**30:.2f} GiB a process{of}{warning}"


def seconds(arguments: Arguments, steps: int, forward: float) -> str:
    """Time ahead, from the seconds that a token's forward took; a step costs about three forwards, four with checkpointing."""
    args = arguments.training
    tokens = steps * rows(args) * arguments.data.sequence_length / args.world_size
    ahead = tokens * forward * (4 if _recomputes(args) else 3)
    return f"time: about {ahead / 60:.1f} minutes for {steps} steps, at this machine's pace"


def _recomputes(args: Any) -> bool:
    """True where activations are computed again in the backward pass instead of kept."""
    return bool(args.gradient_checkpointing or getattr(args, "activation_checkpointing", False))
