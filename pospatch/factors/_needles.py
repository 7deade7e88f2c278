"""The score: loss of the answers to questions about needles in a text of the wanted length."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import nn

from pospatch.evaluate._head import SlicedHead
from pospatch.evaluate._retrieval import Question
from pospatch.evaluate._tokens import Tokens
from pospatch.evaluate.needle import builder

__all__ = ["answer_loss", "questions"]


def questions(tokenizer: Any, tokens: Tokens, length: int, count: int, seed: str) -> list[Question]:
    """Questions whose needles stand at depths spread evenly over the text."""
    build = builder(tokenizer, tokens, distractors=0, digits=7)
    depths = [(index + 0.5) / count for index in range(count)]
    return [build(length, depth, random.Random(f"{seed}/{index}")) for index, depth in enumerate(depths)]


def answer_loss(head: SlicedHead, asked: list[Question]) -> float:
    """Mean negative log-likelihood in nats of the answers' tokens."""
    total, count = 0.0, 0
    for question in asked:
        whole = torch.tensor([question.ids + question.answer], device=head.device)
        end, size = whole.shape[1] - 1, len(question.answer)
        logits = head.logits(whole, head.hidden(whole), end - size, end)[0]
        target = whole[0, -size:].to(logits.device)
        total += nn.functional.cross_entropy(logits, target, reduction="sum").double().item()
        count += size
    return total / count
