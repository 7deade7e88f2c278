"""What a run is going to do, in a few lines, before it does it."""

from __future__ import annotations

from typing import Any

from transformers.integrations import is_tensorboard_available

from pospatch.api import unwrap
from pospatch.errors import BadOption
from pospatch.evaluate._limits import available_memory, total_memory
from pospatch.training import disk
from pospatch.training.arguments import Arguments

__all__ = ["check_memory", "lines", "memory", "needed", "rows", "seconds", "trackers"]


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
        memory(arguments, model),
        *trackers(arguments),
    ]


def trackers(arguments: Arguments) -> list[str]:
    """Where else the log goes, or why it does not."""
    chosen = arguments.training.report_to
    if chosen:
        return [f"trackers: {', '.join(chosen)}"]
    if arguments.config.get("report_to", "auto") == "auto" and not is_tensorboard_available():
        return ["trackers: none, as tensorboard is not installed (pip install tensorboard); metrics.jsonl has the log"]
    return []


def check_memory(arguments: Arguments, model: Any, *, shared_out: bool) -> None:
    """Refuse a run that clearly cannot fit: its estimate is above all the memory that the device has.

    The estimate is rough: a layer was measured to keep 12 to 25 tensors of hidden states where 17 are counted, and more with
    dropout in its attention. Processes that share weights out are not judged: their part is not known.

    Raises:
        BadOption: saying how much is needed and how much there is.
    """
    wanted, there = needed(arguments, model), total_memory(arguments.training.device)
    if shared_out or not arguments.run.check_memory or there is None or wanted <= there:
        return
    raise BadOption(
        f"training needs about {_gib(wanted)} and this machine ({arguments.training.device.type}) has {_gib(there)} in all, free "
        f"or not: shorten sequence_length ({arguments.data.sequence_length}), set activation_checkpointing: true, or take fewer "
        "sequences a step; the estimate is rough: check_memory: false goes on all the same"
    )


def needed(arguments: Arguments, model: Any) -> int:
    """Bytes of weights, gradients, the optimizer's moments and activations of one process; what a scheme shards is not taken
    off."""
    args, config = arguments.training, unwrap(model).config.get_text_config()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    batch = args.per_device_train_batch_size
    tokens = batch * arguments.data.sequence_length
    item = 2 if args.bf16 or args.fp16 else next(model.parameters()).element_size()
    layer = tokens * config.hidden_size * item  # one tensor of hidden states; a layer keeps about 17 of them
    activations = layer * (config.num_hidden_layers + 17 if _recomputes(args) else 17 * config.num_hidden_layers)
    distills = arguments.distill is not None
    shown = (
        arguments.data.sequence_length
        if distills
        else min(arguments.tune.loss_slice or arguments.data.sequence_length, arguments.data.sequence_length)
    )
    logits = 0 if arguments.model.head == "encoder" else 8 * batch * shown * config.vocab_size
    if distills:  # the teacher's weights and its logits beside the student's
        weights, logits = 2 * weights, 2 * logits
    return int(weights + (1 + disk.moments(args)) * trained + activations + logits)


def memory(arguments: Arguments, model: Any) -> str:
    """What a process needs beside what is free, with a warning where that is less."""
    wanted, free = needed(arguments, model), available_memory(arguments.training.device)
    of = f" of {free / 2**30:.1f} GiB free" if free is not None else ""
    warning = (
        "" if free is None or wanted < free else ": MORE THAN IS FREE; shorten sequences, or checkpoint activations"
    )
    return f"memory: about {_gib(wanted)} a process{of}{warning}"


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def seconds(arguments: Arguments, steps: int, forward: float) -> str:
    """Time ahead, from the seconds that a token's forward took; a step costs about three forwards, four with checkpointing."""
    args = arguments.training
    tokens = steps * rows(args) * arguments.data.sequence_length / args.world_size
    ahead = tokens * forward * (4 if _recomputes(args) else 3)
    return f"time: about {ahead / 60:.1f} minutes for {steps} steps, at this machine's pace"


def _recomputes(args: Any) -> bool:
    """True where activations are computed again in the backward pass instead of kept."""
    return bool(args.gradient_checkpointing or getattr(args, "activation_checkpointing", False))
