"""Training sequences from a text: cut wherever they end; documents packed into rows; rows within documents; one a row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pospatch.errors import BadOption
from pospatch.evaluate._tokens import encode, prefix_of, text_tokens
from pospatch.training.options import DataArguments

__all__ = ["Rows", "frame", "rows"]

# each (rows, length): input_ids; position_ids, attention_mask and labels where they are needed
Rows = dict[str, Tensor]
_UNSCORED = -100


def rows(tokenizer: Any, text: str, arguments: DataArguments) -> Rows:
    """The training sequences of a text.

    Raises:
        BadOption: the text, or every document of it, is too short for one.
    """
    length, wanted = arguments.sequence_length, arguments.train_tokens
    if wanted is not None and wanted < length:
        raise BadOption(f"train_tokens {wanted} is less than one sequence of {length}: raise it or drop it")
    if length <= (around := sum(map(len, frame(tokenizer)))):
        raise BadOption(f"sequence_length {length} has no room beside the {around} tokens that stand around a sequence")
    if arguments.documents == "concat":
        return _concatenated(tokenizer, text, length, wanted)
    documents = _documents(tokenizer, text, arguments)
    if arguments.documents == "padded":
        return _padded(documents, length, getattr(tokenizer, "pad_token_id", None) or 0, *frame(tokenizer))
    if arguments.documents == "packed":
        return _packed(documents, length)
    return _sliding(documents, length, arguments.stride or length)


def _concatenated(tokenizer: Any, text: str, length: int, wanted: int | None) -> Rows:
    """One row after another; what is left over at the end is dropped."""
    tokens = text_tokens(tokenizer, text, wanted or length)
    ids = tokens.ids if wanted is not None else torch.tensor(encode(tokenizer, text))
    head, tail = frame(tokenizer)
    body = length - len(head) - len(tail)
    bodies = ids[: len(ids) // body * body].view(-1, body)
    return {"input_ids": torch.cat([head.expand(len(bodies), -1), bodies, tail.expand(len(bodies), -1)], dim=1)}


def frame(tokenizer: Any) -> tuple[Tensor, Tensor]:
    """The tokens before and after each sequence: the beginning-of-sequence token, or an encoder's CLS and SEP."""
    cls, empty = getattr(tokenizer, "cls_token_id", None), list(tokenizer("", verbose=False)["input_ids"])
    framed = cls is not None and empty[:1] == [cls]  # also where it is the beginning-of-sequence token, as in RoBERTa
    head, tail = (empty[:1], empty[1:]) if framed else (prefix_of(tokenizer), [])
    return torch.tensor(head, dtype=torch.long), torch.tensor(tail, dtype=torch.long)


def _documents(tokenizer: Any, text: str, arguments: DataArguments) -> list[Tensor]:
    """Each document in its frame, up to `train_tokens` in all."""
    head, tail = frame(tokenizer)
    left, found = arguments.train_tokens, []
    for part in text.split(arguments.separator):
        if not part.strip():
            continue
        room = None if left is None else left - len(head) - len(tail)
        if room is not None and room < 1:
            break
        body = torch.tensor(encode(tokenizer, part)[:room], dtype=torch.long)
        if not len(body):
            continue
        found.append(torch.cat([head, body, tail]))
        if left is not None:
            left -= len(found[-1])
    return found


def _packed(documents: list[Tensor], length: int) -> Rows:
    """Document after document; one that a row's end cuts goes on in the next row as a document of its own."""
    ids = torch.cat(documents) if documents else torch.empty(0, dtype=torch.long)
    count = len(ids) // length
    if count == 0:
        raise BadOption(f"the documents have {len(ids)} tokens in all, and a sequence takes {length}")
    starts = torch.zeros(len(ids), dtype=torch.bool)
    starts[torch.tensor([0, *(len(each) for each in documents[:-1])]).cumsum(0)] = True
    ids, starts = ids[: count * length].view(count, length), starts[: count * length].view(count, length)
    starts[:, 0] = True
    place = torch.arange(length).expand(count, -1)
    positions = place - torch.where(starts, place, 0).cummax(dim=1).values
    return {"input_ids": ids, "position_ids": positions, "labels": ids.masked_fill(starts, _UNSCORED)}


def _padded(documents: list[Tensor], length: int, pad: int, head: Tensor, tail: Tensor) -> Rows:
    """One document a row; of a longer one each piece stands in the frame of a document."""
    body, rows = length - len(head) - len(tail), []
    for each in documents:
        inner = each[len(head) : len(each) - len(tail)]
        rows += [torch.cat([head, piece, tail]) for piece in inner.split(body)]
    if not rows:
        raise BadOption("the text has no document that is not empty")
    ids, mask = (torch.full((len(rows), length), fill, dtype=torch.long) for fill in (pad, 0))
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, _UNSCORED)}


def _sliding(documents: list[Tensor], length: int, stride: int) -> Rows:
    """Rows within documents, the next one `stride` tokens further; documents shorter than a row are left out."""
    found = [each.unfold(0, length, stride) for each in documents if len(each) >= length]
    if not found:
        longest = max(map(len, documents), default=0)
        raise BadOption(
            f"no document has the {length} tokens of a sequence, the longest has {longest}: lower sequence_length, give the "
            "separator of longer documents, or set documents: packed"
        )
    return {"input_ids": torch.cat(found)}
