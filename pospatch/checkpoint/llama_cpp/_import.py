"""What a GGUF says of its positions, as methods: transformers reads the weights and drops most of it."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from pospatch.checkpoint.doctor._claims import finite
from pospatch.checkpoint.doctor._gguf import Header
from pospatch.checkpoint.llama_cpp._frequencies import FACTORS, computed
from pospatch.errors import CheckpointError, CheckpointWarning

__all__ = ["put_back", "stack_of"]

Stack = list[tuple[str, dict[str, Any]]]
SLOWEST = (
    2.0**40
)  # the largest divisor that a method takes; a pair with a larger one turns less than 1e-11 radians a token
NEAR = 1e-5  # relative: the keys are float32, and so is what transformers computes


def stack_of(header: Header, theta: float | None) -> Stack:
    """The methods that give a model with plain frequencies of `theta` the file's positions.

    Raises:
        CheckpointError: a kind that no method has.
    """
    keys = _keys(header)
    wanted = float(keys.get("rope.freq_base", 10000.0))
    stack: Stack = (
        [] if theta is not None and abs(theta - wanted) <= 1e-4 * wanted else [("rope", {"rope_theta": wanted})]
    )
    factor, kind = float(keys.get("rope.scaling.factor", 1.0)), header.scaling
    amplitude = keys.get("rope.scaling.attn_factor")
    if FACTORS in header.factors and kind == "none":
        lists = tuple(min(value, SLOWEST) for value in header.factors[FACTORS])
        options = {"short_factor": lists, "long_factor": lists, "attention_factor": float(amplitude or 1.0)}
        return [*stack, ("longrope", {"factor": 1.0, **options})]
    if kind == "linear" and not header.factors and amplitude in (None, 1.0):
        return [*stack, ("linear", {"factor": factor})]
    if kind == "yarn" and not header.factors and finite(keys.get("rope.scaling.original_context_length")):
        options = {
            name: keys[f"rope.scaling.yarn_{name}"]
            for name in ("beta_fast", "beta_slow")
            if f"rope.scaling.yarn_{name}" in keys
        }
        if amplitude not in (None, 1.0):
            options["attention_factor"] = computed(keys, None, 2)[1]
        original = int(keys["rope.scaling.original_context_length"])
        return [*stack, ("yarn", {"factor": factor, "original_max_position_embeddings": original, **options})]
    if kind == "none" and not header.factors:
        return stack
    raise CheckpointError(
        f"a GGUF with rope.scaling.type {kind!r} and {sorted(header.factors) or 'no divisors'} has no counterpart among the "
        "methods; take the original checkpoint"
    )


def put_back(model: Any, header: Header) -> None:
    """Give a loaded model the positions of its file; says so in a warning.

    Raises:
        CheckpointError: no method does, or not exactly; the model is as it was loaded.
    """
    import pospatch
    from pospatch.engine._sites import find, rotations

    rotation = rotations(find(model)).get(None)
    stack = stack_of(header, rotation.theta if rotation is not None else None)
    pospatch.apply(model, stack)
    try:
        _check_spectrum(model, header)
    except CheckpointError:
        pospatch.remove(model)
        raise
    said = " + ".join(name for name, _ in stack)
    warnings.warn(
        f"the GGUF states positions that transformers drops; {said} was applied, which is the same: see pospatch.inspect(model)",
        CheckpointWarning,
        stacklevel=3,
    )


def _check_spectrum(model: Any, header: Header) -> None:
    """Compare the frequencies that now turn with those that llama.cpp computes from the file.

    Raises:
        CheckpointError: they differ.
    """
    from pospatch.engine._sites import find, rotations

    rotation = rotations(find(model)).get(None)
    factors = torch.tensor(header.factors[FACTORS]) if FACTORS in header.factors else None
    if rotation is not None:
        theirs, amplitude = computed(_keys(header), factors, rotation.dim // 2)
        gap = (rotation.inv_freq.double() - theirs).abs()
        if bool((gap <= NEAR * theirs + 1e-11).all()) and abs(rotation.attention_factor - amplitude) <= NEAR:
            return
    raise CheckpointError(
        "the file's frequencies could not be brought about on this model; take the original checkpoint"
    )


def _keys(header: Header) -> dict[str, Any]:
    """Keys below the architecture's name."""
    begin = f"{header.architecture}."
    return {name.removeprefix(begin): value for name, value in header.keys.items() if name.startswith(begin)}
