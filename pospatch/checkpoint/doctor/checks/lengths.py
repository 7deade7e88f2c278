"""Lengths: what positions reach, what tables hold, and where tools cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pospatch.checkpoint._numbers import finite
from pospatch.checkpoint.doctor._evidence import Evidence
from pospatch.checkpoint.doctor._finding import Finding, error, note, warning
from pospatch.checkpoint.doctor.checks._registry import check

UNLIMITED = 1e20  # tokenizers write 1e30 where they know no length
DEFAULT = 2048  # what lm-eval takes where nothing states a length
FIELDS = ("n_positions", "max_position_embeddings", "n_ctx")  # that lm-eval reads, in its order


def evaluation_length(seen: Evidence) -> tuple[int, str] | None:
    """Tokens at which lm-eval cuts, and where it found that; None where no config is known."""
    if seen.used.config is None:
        return None
    config = getattr(seen.used.config, "text_config", None) or seen.used.config
    for name in FIELDS:
        if finite(value := getattr(config, name, None)):
            return int(value), name
    limit = tokenizer_length(seen)
    return (
        (limit, "the tokenizer's model_max_length")
        if limit
        else (DEFAULT, "its default, since nothing states a length")
    )


def tokenizer_length(seen: Evidence) -> int | None:
    """Tokens at which the tokenizer cuts, or None where it states none."""
    value = (seen.tokenizer or {}).get("model_max_length")
    return int(value) if finite(value) and 0 < value < UNLIMITED else None


def reach(seen: Evidence) -> int | None:
    """Tokens that a scaling says it reaches."""
    found: list[float] = []
    for parameters in seen.used.rope.values():
        factor, original = parameters.get("factor"), parameters.get("original_max_position_embeddings")
        if parameters.get("rope_type") == "dynamic":
            original = seen.used.length
        elif parameters.get("rope_type") not in ("yarn", "longrope"):
            continue
        if finite(factor) and finite(original):
            found.append(factor * original)  # type: ignore[operator]
    return int(max(found)) if found and max(found) < UNLIMITED else None


@check
def evaluation_cuts(seen: Evidence) -> Iterator[Finding]:
    """Evaluation tools cut inputs below what the positions reach."""
    cut, wanted = evaluation_length(seen), reach(seen)
    if cut is None or seen.used.failure:
        return
    if wanted is not None and cut[0] < wanted:
        yield warning(
            f"lm-eval cuts inputs at {cut[0]} tokens, from {cut[1]}",
            f"{wanted}, which the scaled positions reach",
            f"give it max_length={wanted}"
            + ("" if _dynamic(seen) else f", or set max_position_embeddings to {wanted}"),
        )
    elif cut[0] == DEFAULT and cut[1].startswith("its default"):
        yield note(
            f"lm-eval cuts inputs at {DEFAULT} tokens, {cut[1]}", "the length that is read", "give it max_length=..."
        )


def _dynamic(seen: Evidence) -> bool:
    """transformers' "dynamic" reads the trained length from max_position_embeddings, which therefore stays."""
    return any(item.get("rope_type") == "dynamic" for item in seen.used.rope.values())


@check
def promised_length(seen: Evidence) -> Iterator[Finding]:
    """The config promises more than its own scaling reaches."""
    length, wanted = seen.used.length, reach(seen)
    kinds = {item.get("rope_type") for item in seen.used.rope.values()}
    if length and wanted and kinds <= {"yarn", "default"} and length > wanted * 1.01:
        yield warning(
            f"max_position_embeddings={length}",
            f"at most {wanted}, which factor and trained length give",
            "correct factor, original_max_position_embeddings or max_position_embeddings",
        )


@check
def tokenizer_cuts(seen: Evidence) -> Iterator[Finding]:
    """The tokenizer's own limit against the model's."""
    limit, length = tokenizer_length(seen), seen.used.length
    if limit is None or not length or seen.kind != "model":
        return
    length -= _offset(seen)
    if limit < length:
        yield warning(
            f"the tokenizer's model_max_length={limit}: truncation=True and pipelines cut there",
            f"{length}, which the model reads",
            f"set model_max_length to {length} in tokenizer_config.json",
        )
    elif limit > length and seen.used.tables:
        yield warning(
            f"the tokenizer's model_max_length={limit}",
            f"{length}, the rows of the table: a longer input is an index error",
            f"set model_max_length to {length} in tokenizer_config.json",
        )


def _offset(seen: Evidence) -> int:
    """Rows before position 0 that the config counts (roberta)."""
    from pospatch.hosts import host_of

    host = host_of(seen.used.config.model_type)
    counts = host is not None and host.counts_offset
    return int(getattr(seen.used.text, "pad_token_id", 0) or 0) + 1 if counts else 0


@check
def table_rows(seen: Evidence) -> Iterator[Finding]:
    """A table of positions whose rows in the weights are not those of the config."""
    model = seen.base.used if seen.base is not None and seen.kind == "peft adapter" else seen.used
    for table in model.tables:
        name, shape = stored(seen, table.name)
        if shape is not None and len(shape) == len(table.shape) and tuple(shape) != table.shape:
            yield error(
                f"{name} of shape {shape} in the weights",
                f"{table.shape} by the config",
                "set the config's length to the rows that are there; transformers refuses it, and with "
                "ignore_mismatched_sizes=True it makes random rows",
            )


def stored(seen: Evidence, wanted: str) -> tuple[str, tuple[int, ...] | None]:
    """A tensor under its own name, or with more or less of a head's prefix."""
    places = seen.weights.places
    if wanted in places:
        return wanted, seen.weights.shape(wanted)
    near = [name for name in places if name.endswith(f".{wanted}") or wanted.endswith(f".{name}")]
    return (near[0], seen.weights.shape(near[0])) if len(near) == 1 else (wanted, None)


@check
def relative_keys(seen: Evidence) -> Iterator[Finding]:
    """Distance embeddings of old BERT checkpoints, which transformers 5 drops."""
    kind: Any = seen.raw.get("position_embedding_type")
    stored = [name for name in seen.weights.places if name.endswith(".distance_embedding.weight")]
    known = any(name.endswith("distance_embedding.weight") for name in seen.used.names)
    held = any(method.slot == "score" for method in seen.stack)  # by what load_distance_embeddings put there
    if known or held or not seen.used.names or not (stored or kind in ("relative_key", "relative_key_query")):
        return
    yield error(
        f"{seen.used.model_class} without distance embeddings: transformers 5 drops them",
        f"position_embedding_type={kind!r} with {len(stored)} distance embeddings in the weights",
        "load it with transformers, then pospatch.load_distance_embeddings(model, folder)",
    )
