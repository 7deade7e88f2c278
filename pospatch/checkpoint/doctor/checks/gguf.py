"""GGUF files: keys that llama.cpp reads and transformers drops."""

from __future__ import annotations

from collections.abc import Iterator

from pospatch.checkpoint._numbers import finite
from pospatch.checkpoint.doctor._evidence import Evidence
from pospatch.checkpoint.doctor._finding import Finding, error, warning
from pospatch.checkpoint.doctor._gguf import Header
from pospatch.checkpoint.doctor.checks._registry import check

THETA = 10000.0  # llama.cpp's, where a file states none


@check
def gguf_scaling(seen: Evidence) -> Iterator[Finding]:
    """A scaling in the keys that transformers does not take over."""
    header, used = seen.gguf, seen.used
    if header is None or used.config is None:
        return
    kinds = {str(item.get("rope_type")) for item in used.rope.values()}
    scaled = header.scaling != "none" and header.factor != 1.0 and header.scaling not in kinds
    amplitude = header.get("rope.scaling.attn_factor")
    louder = amplitude not in (None, 1.0) and all(item.get("attention_factor") is None for item in used.rope.values())
    if scaled or louder:
        by_hand = "" if louder else f"; by hand: {_call(header)}"
        yield error(
            f"{' and '.join(sorted(kinds)) or 'no scaling'} in transformers, which reads no such key for {header.architecture}",
            f"{header.architecture}.rope.scaling.type = {header.scaling}, factor {header.factor}"
            + (f", attn_factor {amplitude}" if louder else ""),
            f"pospatch.from_pretrained(AutoModelForCausalLM, folder, gguf_file=...) puts it back{by_hand}",
        )


def _call(header: Header) -> str:
    """The call that gives a loaded model the file's scaling."""
    options = {
        "factor": header.factor,
        "original_max_position_embeddings": header.get("rope.scaling.original_context_length"),
        "beta_fast": header.get("rope.scaling.yarn_beta_fast"),
        "beta_slow": header.get("rope.scaling.yarn_beta_slow"),
    }
    if header.scaling != "yarn":
        options = {"factor": options["factor"]}
    said = ", ".join(f"{name}={value:.10g}" for name, value in options.items() if finite(value))
    return f"pospatch.apply(model, {header.scaling!r}, {said})"


@check
def gguf_factors(seen: Evidence) -> Iterator[Finding]:
    """Divisors of the frequencies (Llama 3.1's, LongRoPE's, any spectrum of pospatch) that transformers does not read."""
    header, used = seen.gguf, seen.used
    if header is None or used.config is None:
        return
    acting = {name: values for name, values in header.factors.items() if any(value != 1.0 for value in values)}
    scaled = [item for item in used.rope.values() if item.get("rope_type") not in (None, "default")]
    if acting and not scaled:
        name = next(iter(acting))
        yield error(
            "the plain frequencies of rope_theta in transformers",
            f"{name}, {len(acting[name])} divisors from {min(acting[name]):.4g} to {max(acting[name]):.4g}",
            "pospatch.from_pretrained(AutoModelForCausalLM, folder, gguf_file=...) puts them back; or take the original model",
        )


@check
def gguf_theta(seen: Evidence) -> Iterator[Finding]:
    """The base of the frequencies."""
    if seen.gguf is None or not seen.used.thetas:
        return
    stated = seen.gguf.get("rope.freq_base")
    wanted = float(stated) if finite(stated) else THETA
    thetas = set(seen.used.thetas.values())
    if all(abs(theta - wanted) > 1e-4 * wanted for theta in thetas):
        where = (
            f"{seen.gguf.architecture}.rope.freq_base" if finite(stated) else "llama.cpp's own, since no key states one"
        )
        yield error(
            f"rope_theta {' and '.join(f'{theta:g}' for theta in sorted(thetas))} in transformers",
            f"{wanted:g}, {where}",
            f"load it with transformers, then pospatch.apply(model, 'rope', rope_theta={wanted:g})",
        )


@check
def gguf_length(seen: Evidence) -> Iterator[Finding]:
    """The length."""
    if seen.gguf is None or seen.used.config is None:
        return
    stated, length = seen.gguf.get("context_length"), seen.used.length
    if finite(stated) and length and int(stated) != length:
        yield warning(
            f"max_position_embeddings={length} in transformers",
            f"{seen.gguf.architecture}.context_length = {stated}",
            "set config.max_position_embeddings before it is saved",
        )
