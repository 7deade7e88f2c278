"""One thing to be measured, as plain data, so that another process can build it again."""

from __future__ import annotations

import ast
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from pospatch.api import methods_of
from pospatch.errors import BadOption, suggest

__all__ = ["ENCODERS", "LEVELS", "SHAPES", "WORKS", "Cell", "method_of"]

LEVELS = ("model", "attention")
WORKS = ("prefill", "decode", "train", "patch")
DTYPES = ("float32", "bfloat16", "float16")

# what a config class of transformers is given; the rest are its defaults
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-22m": (
        "BertConfig",
        {
            "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        },
    ),
    "gpt2": ("GPT2Config", {}),
    "gpt_neox-124m": (
        "GPTNeoXConfig",
        {
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "vocab_size": 50257, "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0,
            },
            "use_parallel_residual": False, "tie_word_embeddings": True,
        },
    ),
    "llama-135m": (
        "LlamaConfig",
        {
            "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
            "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}, "tie_word_embeddings": True,
        },
    ),
}  # fmt: skip
ENCODERS = frozenset({"bert-22m"})  # shapes that read a text at once


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A piece of work on a model with or without a method.

    Args:
        model: a named shape, a folder or a Hub repository, or smollm2-135m.
        work: prefill, decode (one token after `length`), train (forward and backward) or patch (apply and remove; plain is a
            forward pass over `length` tokens).
        length: in tokens.
        method: names joined by "+", or None for the model as it is.
        form: "ours", "reference" (whole matrices) or "plain".
        level: the whole model, or the attention of one layer.
        layers: layers of a named shape, or None for its own number.
        peer: name of someone else's implementation of the method, in place of ours.
    """

    model: str
    work: str
    length: int
    method: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    form: str = "ours"
    level: str = "model"
    dtype: str = "float32"
    batch: int = 1
    layers: int | None = None
    device: str = "cpu"
    peer: str | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("work", self.work, WORKS),
            ("level", self.level, LEVELS),
            ("dtype", self.dtype, DTYPES),
        ):
            if value not in known:
                raise BadOption(f"bench: {name}={value!r}.{suggest(value, known)} It is one of {', '.join(known)}")
        if self.length < 16:
            raise BadOption(f"bench: length={self.length} must be at least 16 tokens")
        if self.model in ENCODERS and (self.level == "attention" or self.work not in ("prefill", "patch")):
            raise BadOption(
                f"bench: {self.model} is an encoder, measured whole by prefill or patch, got {self.level}, {self.work}"
            )
        if self.level == "attention" and self.work == "decode":
            raise BadOption(
                "bench: a step is measured on a whole model, whose cache takes part; use level='model', "
                "with few layers where that takes long"
            )
        if self.work == "patch" and self.level == "attention":
            raise BadOption("bench: a patch is put on a whole model; use level='model'")

    def to_json(self) -> str:
        """All of it in one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Cell:
        """What `to_json` wrote."""
        return cls(**json.loads(line))


def method_of(words: str) -> tuple[str, dict[str, Any]]:
    """`yarn:factor=2,beta_fast=16` as a name and its options.

    >>> method_of("rope+yarn:factor=2")
    ('rope+yarn', {'factor': 2})

    Raises:
        UnknownName, BadOption: no such method or option, or words of another form.
    """
    name, _, given = words.partition(":")
    options: dict[str, Any] = {}
    for item in filter(None, given.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key.isidentifier():
            raise BadOption(f"bench: {words!r} must read METHOD:NAME=VALUE,NAME=VALUE, e.g. yarn:factor=2")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    methods_of(name.split("+"), options)  # an unknown name or option now rather than after hours
    return name, options
