"""A tokenizer as a GGUF's vocabulary: byte-level BPE whose splitting of words llama.cpp knows by a name."""

from __future__ import annotations

import json
from typing import Any

from pospatch.errors import UnsupportedHost

__all__ = ["splitting", "write_vocabulary"]

LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WAY_OUT = "nearest: pospatch.export(model, folder, tokenizer=tokenizer), then llama.cpp's own convert_hf_to_gguf.py on the folder"


def splitting(backend: dict[str, Any]) -> str | None:
    """llama.cpp's name for how a byte-level tokenizer splits a text into words, or None where it has none."""
    parts = _parts(backend.get("pre_tokenizer"))
    whole = backend["model"].get("ignore_merges", False)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False}
    known = {
        "gpt-2": ([{**byte_level, "use_regex": True}], False),
        "smollm": ([{"type": "Digits", "individual_digits": True}, {**byte_level, "use_regex": True}], False),
        "llama-bpe": (
            [
                {"type": "Split", "pattern": {"Regex": LLAMA_3}, "behavior": "Isolated", "invert": False},
                {**byte_level, "use_regex": False},
            ],
            True,
        ),
    }
    return next((name for name, wanted in known.items() if wanted == (parts, whole)), None)


def _parts(splitter: Any) -> list[dict[str, Any]]:
    """The steps of a splitter without what changes no token (offsets)."""
    steps = splitter.get("pretokenizers", [splitter]) if isinstance(splitter, dict) else []
    return [{name: value for name, value in step.items() if name != "trim_offsets"} for step in steps]


def write_vocabulary(writer: Any, tokenizer: Any, size: int) -> None:
    """Tokens, merges, special tokens and chat template.

    Raises:
        UnsupportedHost: a tokenizer that a GGUF cannot say exactly; with the nearest way.
    """
    from gguf import TokenType

    backend = _backend(tokenizer)
    name = splitting(backend)
    if name is None:
        raise UnsupportedHost(f"llama.cpp has no name for how this tokenizer splits words; {WAY_OUT}")
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [TokenType.UNUSED] * size
    added = {item["id"]: item for item in backend["added_tokens"]}
    vocabulary = {number: token for token, number in backend["model"]["vocab"].items()}
    if max({*vocabulary, *added}) >= size:
        raise UnsupportedHost(
            f"the tokenizer has {max({*vocabulary, *added}) + 1} tokens and the model {size}; {WAY_OUT}"
        )
    for number, token in vocabulary.items():
        tokens[number], types[number] = token, TokenType.NORMAL
    for number, item in added.items():
        tokens[number] = item["content"]
        types[number] = TokenType.CONTROL if item["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in backend["model"]["merges"]]
    )
    _special(writer, tokenizer)


def _backend(tokenizer: Any) -> dict[str, Any]:
    """tokenizer.json as data.

    Raises:
        UnsupportedHost: not a byte-level BPE.
    """
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UnsupportedHost(
            f"{type(tokenizer).__name__} has no tokenizer.json, from which a GGUF is written; {WAY_OUT}"
        )
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model = backend["model"]
    odd = [
        name
        for name in ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix")
        if model.get(name)
    ]
    if model.get("type") != "BPE" or backend.get("normalizer") is not None or odd:
        raise UnsupportedHost(
            f"a byte-level BPE tokenizer without normalizer is wanted, got {model.get('type')}"
            f"{' with a normalizer' if backend.get('normalizer') else ''}{' with ' + ', '.join(odd) if odd else ''}; {WAY_OUT}"
        )
    return backend


def _special(writer: Any, tokenizer: Any) -> None:
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(bool(ids) and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(bool(ids) and ids[-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
