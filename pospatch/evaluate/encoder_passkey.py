"""Passkey retrieval for sentence encoders: which of many long documents holds the pass key of a named person."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from typing import Any

from pospatch.errors import BadOption
from pospatch.evaluate._encode import Wrapping, check_pooling, embed
from pospatch.evaluate._limits import reach, refuse_too_long
from pospatch.evaluate._plot import draw_shares as draw
from pospatch.evaluate._progress import bar
from pospatch.evaluate._result import Cells, Result, describe_model
from pospatch.evaluate._retrieval import share
from pospatch.evaluate._tokens import encode, positive_lengths
from pospatch.evaluate.passkey import fill, sentences

__all__ = ["AUTO", "PROTOCOLS", "draw", "encoder_passkey"]

AUTO = "AutoModel"
PROTOCOLS = {
    "longembed": "top-1 accuracy of queries over documents of one length, a name and its key in each (LongEmbed)"
}

# LongEmbed's personalised passkey (arXiv 2404.12096): the filler of the decoder's test, and a person's name.
_NEEDLE = "{name}'s pass key is {key}. Remember it. {key} is the pass key for {name}. "
_QUERY = "what is the pass key for {name}?"
# No two people of a set share a first or a last name, as in LongEmbed: words tell them apart, and not which ones go together.
_FIRST = """
Aaron Abigail Adrian Alejandra Alice Amara Andre Angela Anton Ava Bella Benjamin Bianca Brandon Bridget Caleb Carlos Cecilia
Cesar Charlotte Clara Cooper Cynthia Daisy Damian Diana Dominic Douglas Edith Edward Elena Emmanuel Esther Fatima Felix Fiona
Frances Gabriel George Gloria Grace Hannah Harold Hector Helen Hugo Ida Ingrid Isaac Ivan Jasmine Jerome Joanna Jorge Julia
Kamala Kenneth Kevin Lars Laura Leonard Lucia Malayah Marcus Martin Miriam Monica Nadia Nathan Nora Octavia Oliver Oscar
Pablo Patricia Paula Quentin Rachel Raymond Rebecca Rosa Rupert Samantha Sebastian Simon Sofia Stella Tara Theodore Thomas
Ursula Vanessa Victor Violet Walter Wendy Xavier Yolanda Yusuf Zachary
"""
_LAST = """
Adams Alfaro Anderson Bailey Barnes Bennett Brooks Brown Campbell Carter Castillo Chen Clark Coleman Cruz Davis Delgado Diaz
Edwards Ellis Evans Fernandez Fisher Fletcher Foster Freeman Garcia Gibson Gomez Graves Green Griffin Hamilton Harris Hayes
Henderson Hill Hoffman Hughes Irwin Jackson Jenkins Johnson Jones Kaplan Kelly Kennedy King Knight Lambert Larsen Lewis Lopez
Marshall Martinez McCann McLean Mendoza Mitchell Moore Morgan Murphy Nelson Nguyen Nichols Oconnor Ortiz Owens Palmer Parker
Patel Perry Peterson Phillips Powell Quinn Ramirez Reed Reynolds Richards Rivera Robinson Ross Russell Sanders Schmidt Scott
Silva Simmons Spencer Stewart Sullivan Taylor Thompson Turner Vargas Wagner Walsh Weaver Young
"""
_LEAST = 64


def encoder_passkey(
    model: Any,
    tokenizer: Any,
    *,
    lengths: int | Sequence[int],
    queries: int = 50,
    documents: int = 100,
    cut: int | None = None,
    pooling: str = "mean",
    batch: int = 8,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Result:
    """Share of queries whose own document is the most similar of all documents of a length.

    Each document hides one sentence with a person's name and key at a random depth of filler; the query names the person.
    Chance is 1 in `documents`. Documents have exactly the asked length in tokens, special tokens included.

    Args:
        model: any encoder that gives hidden states (AutoModel), patched or not.
        tokenizer: its tokenizer.
        lengths: document lengths in tokens, at least 64.
        queries: queries per length, 50 in LongEmbed, at most `documents`.
        documents: candidates per length, 100 in LongEmbed, at most 100.
        cut: read only the first `cut` tokens of each document, as a model with a shorter table must; None reads all.
        pooling: `mean`, `cls` or `last`.
        batch: documents per forward.
        seed: of names, keys and depths.
        path: where to write the result (.json, .md and .png) and, meanwhile, finished cells to go on from.
        progress: show a bar on stderr.

    Raises:
        BadOption: lengths or counts out of range, or longer than the model reads while `cut` is None.
        UnsupportedHost: no hidden states.
    """
    wanted = positive_lengths(lengths, _LEAST)
    _check(queries, documents, cut, batch)
    check_pooling(pooling)
    end = reach(model)
    if end is not None and min(wanted[-1], cut or wanted[-1]) > end:
        raise BadOption(
            f"{type(model).__name__} reads at most {end} tokens, got length {wanted[-1]}: give cut={end} to measure it on "
            "documents cut to what it reads, or apply a method that reaches further"
        )
    started = time.monotonic()
    refuse_too_long(model, min(wanted[-1], cut or wanted[-1]))
    label, record = describe_model(model)
    options = {"queries": queries, "documents": documents, "cut": cut, "pooling": pooling, "query": _QUERY,
               "document": _NEEDLE, "people": "share no name"}  # fmt: skip
    run = {"task": "encoder_passkey", "model": record, "options": options, "seed": seed}
    cells = Cells(path, run)
    todo = [length for length in wanted if str(length) not in cells]
    with bar(f"encoder passkey, {label}", len(todo) * (queries + documents), progress) as advance:
        for length in todo:
            asked, read = _texts(tokenizer, length, queries, documents, cut, random.Random(f"{seed}/{length}"))
            similar = embed(model, asked, pooling, batch, advance) @ embed(model, read, pooling, batch, advance).T
            cells[str(length)] = similar.argmax(1).tolist()
    rows = [
        {
            "length": length,
            "read": min(length, cut or length),
            **share([found == own for own, found in enumerate(cells[str(length)])]),
            "chance": 1 / documents,
        }
        for length in wanted
    ]
    return cells.conclude(
        started,
        protocol="longembed",
        label=label if cut is None else f"{label}, cut at {cut}",
        lengths=wanted,
        rows=rows,
        n_scored_tokens=0,
        summary={"rate": rows[-1]["rate"], "low": rows[-1]["low"], "high": rows[-1]["high"]},
    )


def _check(queries: int, documents: int, cut: int | None, batch: int) -> None:
    most = min(len(_FIRST.split()), len(_LAST.split()))
    limits = (("documents", documents, 2, most), ("queries", queries, 1, documents), ("batch", batch, 1, 4096),
              ("cut", cut, 16, 1 << 30))  # fmt: skip
    for name, value, least, last in limits:
        if value is None and name == "cut":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= last:
            raise BadOption(f"{name} must be an integer from {least} to {last}, got {value!r}")


def _texts(
    tokenizer: Any, length: int, queries: int, documents: int, cut: int | None, chance: random.Random
) -> tuple[list[list[int]], list[list[int]]]:
    """Wrapped ids of the queries and of the documents; query i asks for document i."""
    wrapping, filler = Wrapping(tokenizer), sentences(tokenizer)
    parts = (chance.sample(names.split(), documents) for names in (_FIRST, _LAST))
    people = [f"{first} {last}" for first, last in zip(*parts, strict=True)]
    read = []
    for name in people:
        needle = encode(tokenizer, _NEEDLE.format(name=name, key=chance.randrange(10000, 100000)))
        room = length - wrapping.size - len(needle)
        if room < 0:
            raise BadOption(f"a document needs {length - room} tokens with this tokenizer, got length {length}")
        before, after = fill(filler, room, chance.random())
        read.append(wrapping.cut(wrapping.around([*before, *needle, *after]), cut))
    asked = [wrapping.around(encode(tokenizer, _QUERY.format(name=name))) for name in people[:queries]]
    return asked, read
