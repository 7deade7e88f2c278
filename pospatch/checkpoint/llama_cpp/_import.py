"""What a GGUF says of its positions, as methods: transformers reads the weights and drops most of it."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from pospatch.checkpoint._numbers import finite
from pospatch.checkpoint.doctor._gguf import Header
from pospatch.checkpoint.llama_cpp._frequencies import FACTORS, computed
from pospatch.errors import CheckpointError, CheckpointWarning, short

__all__ = ["put_back", "stack_of"]

Stack = list[tuple[str, dict[str, Any]]]
# the largest divisor that a method takes; a pair with a larger one turns less than 1e-11 radians a token
SLOWEST = 2.0**40
NEAR = 1e-5  # relative: the keys are float32, and so is what transformers computes


def stack_of(header: Header, theta: float | None, pairs: int) -> Stack:
    """The methods that give a model with plain frequencies of `theta` for so many pairs the file's positions.

    Raises:
        CheckpointError: a kind that no method has, or numbers that are none.
    """
    keys = _keys(header)
    for name in ("rope.freq_base", "rope.scaling.factor", "rope.scaling.attn_factor"):
        if not (finite(keys.get(name, 1.0)) and keys.get(name, 1.0) > 0):
            raise CheckpointError(f"a GGUF with {name} = {short(keys[name])}; a number above 0 is wanted")
    wanted = float(keys.get("rope.freq_base", 10000.0))
    stack: Stack = (
        [] if theta is not None and abs(theta - wanted) <= 1e-4 * wanted else [("rope", {"rope_theta": wanted})]
    )
    factor, kind = float(keys["rope.scaling.factor"]), header.scaling
    amplitude = float(keys.get("rope.scaling.attn_factor", 1.0))
    if kind == "linear" and not header.factors and amplitude == 1.0:
        return [*stack, ("linear", {"factor": factor})]
    if kind in ("none", "linear") and set(header.factors) <= {FACTORS} and (header.factors or amplitude != 1.0):
        step = factor if kind == "linear" else 1.0
        lists = tuple(min(step * value, SLOWEST) for value in header.factors.get(FACTORS, [1.0] * pairs))
        options = {"short_factor": lists, "long_factor": lists, "attention_factor": amplitude}
        return [*stack, ("longrope", {"factor": 1.0, **options})]
    if kind == "yarn" and not header.factors and finite(keys.get("rope.scaling.original_context_length")):
        options = {
            name: keys[f"rope.scaling.yarn_{name}"]
            for name in ("beta_fast", "beta_slow")
            if f"rope.scaling.yarn_{name}" in keys
        }
        if amplitude != 1.0:
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
    if rotation is None:
        raise CheckpointError(
            "the model has not one rotation for all layers, which the GGUF states; take the original checkpoint"
        )
    stack = stack_of(header, rotation.theta, rotation.dim // 2)
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
    """Keys below the architecture's name, the scaling as llama.cpp takes it."""
    begin = f"{header.architecture}."
    keys = {name.removeprefix(begin): value for name, value in header.keys.items() if name.startswith(begin)}
    return {**keys, "rope.scaling.type": header.scaling, "rope.scaling.factor": header.factor}
