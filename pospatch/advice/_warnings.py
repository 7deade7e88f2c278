"""The facts that the suggestions rest on, and what to mind."""

from __future__ import annotations

import math

from pospatch.advice._advice import Suggestion
from pospatch.advice._bounds import aliasing_base, precision_base, stable_base, turns
from pospatch.advice._facts import Facts

__all__ = ["reasons", "warnings"]


def reasons(facts: Facts, length: int) -> tuple[str, ...]:
    """Facts in words."""
    found = []
    if facts.mechanism == "rotary" and facts.theta and facts.rotated and facts.rotated > 2:
        found += _bounds(facts, length, facts.theta, facts.rotated)
    if facts.mechanism == "learned table":
        found.append(f"the table ends after {facts.trained} rows: beyond them the model as it is raises an error")
    if facts.mechanism == "relative bias":
        found.append("the bias depends on distances alone and reads any length; how well is to be measured")
    size = facts.cache_bytes(length)
    if size is not None:
        kind = "compressed keys and values" if facts.latent else "keys and values"
        found.append(f"the cache of {kind} of one sequence of {length} tokens takes {_gib(size)} in {facts.dtype}")
    return tuple(found)


def _bounds(facts: Facts, length: int, theta: float, rotated: int) -> list[str]:
    alias, stable = aliasing_base(rotated, length), stable_base(length, facts.layers)
    short = [f"{value:.3g} ({name})" for name, value in (("aliasing", alias), ("stability", stable)) if theta < value]
    known = f"{turns(theta, rotated, facts.trained):.3g} turns over the trained length and " if facts.trained else ""
    found = [f"the slowest pair makes {known}{turns(theta, rotated, length):.3g} over the wanted one"]
    if short:
        found.append(
            f"rope_theta={theta:g} is below the base that {length} tokens ask for, {' and '.join(short)} "
            "(arXiv 2602.10959): a method that slows the low frequencies is needed, or `rope` with a larger rope_theta "
            "and training"
        )
    else:
        found.append(
            f"rope_theta={theta:g} is above the lower bounds for {length} tokens, {alias:.3g} (aliasing) and "
            f"{stable:.3g} (stability over {facts.layers} layers) (arXiv 2602.10959)"
        )
    return found


def warnings(facts: Facts, length: int, found: tuple[Suggestion, ...]) -> tuple[str, ...]:
    """What to mind, the gravest first."""
    names = {name for each in found for name in each.methods}
    checks = (
        _unknown_length(facts),
        _scaled_already(facts),
        _sliding(facts, length),
        _precision(facts),
        _short_context(names, facts),
        _engines(names, facts),
    )
    return tuple(each for each in checks if each)


def _unknown_length(facts: Facts) -> str | None:
    if facts.trained:
        return None
    return "the config does not say how long the model was trained for, so no factor can be computed: measure where it fails"


def _scaled_already(facts: Facts) -> str | None:
    if facts.rope_type in ("default", "proportional"):
        return None
    before = f", from {facts.unscaled} tokens" if facts.unscaled else ""
    return (
        f"the config scales its rotary encoding already (rope_type={facts.rope_type!r}{before}): the trained length above is "
        "what it reads then, a further factor multiplies with it, and whether it was trained so far the config does not say"
    )


def _sliding(facts: Facts, length: int) -> str | None:
    sizes = [window for window in facts.windows if window is not None and window < length]
    if not sizes:
        return None
    if len(sizes) == facts.layers:
        return (
            f"every layer sees at most {max(sizes)} tokens (sliding window), so no distance is new at any length and no "
            "method makes the model see further: what it reads beyond is handed on from layer to layer"
        )
    return (
        f"{len(sizes)} of {facts.layers} layers see at most {max(sizes)} tokens (sliding window): their distances are known, "
        "and only the other layers need a method (option layers=[...])"
    )


def _precision(facts: Facts) -> str | None:
    if facts.theta is None or facts.theta < precision_base():
        return None
    return (
        f"rope_theta={facts.theta:g} is above 1 / epsilon of float32, {precision_base():.3g}: the slowest pair moves by less "
        "than float32 resolves from one token to the next (arXiv 2602.10959)"
    )


def _short_context(names: set[str], facts: Facts) -> str | None:
    if not names & {"yarn", "longrope", "grouped"}:
        return None
    known = " (15 to 20 % were reported for YaRN on agent tasks, vllm issue 18728)" if "yarn" in names else ""
    task = "short_guard" if facts.causal else "pair_ranking"
    return (
        f"a fixed scaling changes short texts too{known}: measure with `pospatch evaluate MODEL {task} --method ...`, and patch "
        "only where long texts are read"
    )


def _engines(names: set[str], facts: Facts) -> str | None:
    if facts.mechanism != "rotary" or not names:
        return None
    return (
        "other engines: vLLM ignores attention_factor of yarn, computes one table for dynamic types whatever the length, and "
        "reads short_mscale and long_mscale instead of longrope's attention_factor; transformers drops the rope scaling of a "
        "llama GGUF file; self_extend and dca act only where pospatch is"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{math.ceil(size / 2**20)} MiB"
