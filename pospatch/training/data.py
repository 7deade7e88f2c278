"""A text as packed sequences for training, and its end as windows for evaluation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from pospatch.errors import BadOption
from pospatch.evaluate._tokens import text_tokens
from pospatch.training.documents import frame, rows
from pospatch.training.options import DataArguments

__all__ = ["Data", "collate", "halves", "load"]

_UNSCORED = -100


@dataclass(frozen=True)
class Data:
    """Training sequences, evaluation windows by name, and the record of both."""

    train: Any
    windows: dict[str, Any]
    record: dict[str, Any]


def load(arguments: DataArguments, tokenizer: Any, base_length: int, target_length: int) -> Data:
    """Pack the beginning of the text into sequences; hold its end back as windows of both lengths.

    Windows of both lengths end at the same tokens, of which the last `eval_last` are scored: only the context differs.

    Raises:
        BadOption: the text is too short for one sequence or one window.
        UnknownName, AssetError: no such text.
    """
    from datasets import Dataset

    text, kept = halves(arguments)
    train = rows(tokenizer, text, arguments)
    sequences = train["input_ids"]
    lengths = {"base": base_length, "target": target_length}
    if arguments.eval_last >= min(lengths.values()):
        raise BadOption(f"eval_last must be below the shortest evaluated length, got {arguments.eval_last}: {lengths}")
    windows = _windows(tokenizer, kept, arguments, lengths)
    record = {
        "text": arguments.text,
        "sha256": hashlib.sha256((text + kept).encode()).hexdigest(),
        "sequences": len(sequences),
        "sequence_length": arguments.sequence_length,
        "documents": arguments.documents,
        "tokens_sha256": hashlib.sha256(sequences.numpy().tobytes()).hexdigest(),
        "evaluation": {"protocol": "last_k", "k": arguments.eval_last, "windows": arguments.eval_windows, **lengths},
    }
    dataset = Dataset.from_dict({name: each.numpy() for name, each in train.items()}).with_format("torch")
    return Data(train=dataset, windows=windows, record=record)


def halves(arguments: DataArguments) -> tuple[str, str]:
    """The text that is trained on, and its end, which is not."""
    from pospatch import assets

    text = assets.text(arguments.text)
    cut = len(text) - int(len(text) * arguments.held_out)
    return text[:cut], text[cut:]


def _windows(tokenizer: Any, text: str, arguments: DataArguments, lengths: dict[str, int]) -> dict[str, Any]:
    from datasets import Dataset

    longest, count = max(lengths.values()), arguments.eval_windows
    tokens = text_tokens(tokenizer, text, longest + arguments.eval_last * (count - 1))
    ends = [longest + arguments.eval_last * index for index in range(count)]
    head, tail = frame(tokenizer)
    made = {}
    for name, length in lengths.items():
        bodies = [tokens.ids[end - length : end - len(head) - len(tail)] for end in ends]
        ids = torch.stack([torch.cat([head, body, tail]) for body in bodies])
        labels = ids.clone()
        labels[:, : -arguments.eval_last] = _UNSCORED
        made[name] = Dataset.from_dict({"input_ids": ids.numpy(), "labels": labels.numpy()}).with_format("torch")
    return made


def collate(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack sequences; where no labels are given every token is one."""
    batch = {name: torch.stack([each[name] for each in examples]) for name in examples[0]}
    return {**batch, "labels": batch.get("labels", batch["input_ids"])}
