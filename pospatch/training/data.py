"""A text as packed sequences for training, and its end as windows for evaluation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from pospatch.errors import BadOption
from pospatch.evaluate._tokens import encode, text_tokens
from pospatch.training.arguments import DataArguments

__all__ = ["Data", "collate", "load"]

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

    from pospatch import assets

    text = assets.text(arguments.text)
    cut = len(text) - int(len(text) * arguments.held_out)
    sequences = _sequences(tokenizer, text[:cut], arguments)
    lengths = {"base": base_length, "target": target_length}
    if arguments.eval_last >= min(lengths.values()):
        raise BadOption(f"eval_last must be below the shortest evaluated length, got {arguments.eval_last}: {lengths}")
    windows = _windows(tokenizer, text[cut:], arguments, lengths)
    record = {
        "text": arguments.text,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "sequences": len(sequences),
        "sequence_length": arguments.sequence_length,
        "tokens_sha256": hashlib.sha256(sequences.numpy().tobytes()).hexdigest(),
        "evaluation": {"protocol": "last_k", "k": arguments.eval_last, "windows": arguments.eval_windows, **lengths},
    }
    train = Dataset.from_dict({"input_ids": sequences.numpy()}).with_format("torch")
    return Data(train=train, windows=windows, record=record)


def _sequences(tokenizer: Any, text: str, arguments: DataArguments) -> torch.Tensor:
    """Token ids (sequences, length), cut one after the other; what is left over at the end is dropped."""
    length = arguments.sequence_length
    wanted = arguments.train_tokens
    if wanted is not None and wanted < length:
        raise BadOption(f"train_tokens {wanted} is less than one sequence of {length}: raise it or drop it")
    tokens = text_tokens(tokenizer, text, wanted or length)
    prefix = tokens.prefix
    ids = tokens.ids if wanted is not None else torch.tensor(encode(tokenizer, text))
    body = length - len(prefix)
    rows = ids[: len(ids) // body * body].view(-1, body)
    head = torch.tensor(prefix, dtype=rows.dtype).expand(len(rows), len(prefix))
    return torch.cat([head, rows], dim=1)


def _windows(tokenizer: Any, text: str, arguments: DataArguments, lengths: dict[str, int]) -> dict[str, Any]:
    from datasets import Dataset

    longest, count = max(lengths.values()), arguments.eval_windows
    tokens = text_tokens(tokenizer, text, longest + arguments.eval_last * (count - 1))
    ends = [longest + arguments.eval_last * index for index in range(count)]
    made = {}
    for name, length in lengths.items():
        ids = torch.cat([tokens.window(end - length, end) for end in ends])
        labels = ids.clone()
        labels[:, : -arguments.eval_last] = _UNSCORED
        made[name] = Dataset.from_dict({"input_ids": ids.numpy(), "labels": labels.numpy()}).with_format("torch")
    return made


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack sequences; where no labels are given every token is one."""
    ids = torch.stack([row["input_ids"] for row in rows])
    labels = torch.stack([row.get("labels", row["input_ids"]) for row in rows])
    return {"input_ids": ids, "labels": labels}
