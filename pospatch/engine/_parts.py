"""The parts of a model that have positions of their own: encoder and decoder, or its text, image and sound towers."""

from __future__ import annotations

from typing import Any

from pospatch.engine._probe import reads_text
from pospatch.engine._view import real
from pospatch.errors import BadOption, UnsupportedHost

__all__ = ["choose", "towers"]

PARTS = ("encoder", "decoder")
TEXT = "decoder"


def choose(model: Any, part: str | None) -> tuple[Any, str | None]:
    """The module that is looked at and the stack in it, for `part` of a model.

    Returns:
        (the model or one of its towers, "encoder" or "decoder" where one half of an encoder-decoder is meant).

    Raises:
        BadOption: no such part.
    """
    if part is not None and part not in PARTS:
        raise BadOption(f"part={part!r} must be one of {PARTS} or None")
    if getattr(model.config, "is_encoder_decoder", False):
        return model, part
    found = towers(model)
    if not found:
        if part is not None:
            raise BadOption(f"part={part!r}: {type(model).__name__} has one stack of layers; leave part out")
        return model, None
    wanted = part or (TEXT if TEXT in found else next(iter(found)))
    if wanted not in found:
        raise BadOption(f"part={part!r}: {type(model).__name__} has {sorted(found)}")
    if len(found[wanted]) > 1:
        raise UnsupportedHost(
            f"{type(model).__name__} has several towers that are its {wanted}: {[type(t).__name__ for t in found[wanted]]}; "
            "apply the method to one of them"
        )
    return found[wanted][0], None


def towers(model: Any) -> dict[str, list[Any]]:
    """The towers of a model that joins several: "decoder" reads text, "encoder" images or sound; empty where it is one model."""
    if not _joins(model.config):
        return {}
    inside = _inside(model)
    spoken = real(model.config.get_text_config())
    text = [tower for tower in inside if real(tower.config) is spoken] or [t for t in inside if reads_text(t)]
    found: dict[str, list[Any]] = {}
    for tower in inside:
        found.setdefault(TEXT if any(tower is other for other in text) else "encoder", []).append(tower)
    return found if sum(len(same) for same in found.values()) > 1 else {}


def _joins(config: Any) -> bool:
    """True where a config holds the configs of several models."""
    from transformers import PreTrainedConfig

    config = real(config)
    names = getattr(type(config), "sub_configs", {})
    return sum(isinstance(getattr(config, name, None), PreTrainedConfig) for name in names) > 1


def _inside(model: Any) -> list[Any]:
    """The outermost models inside that do not join others themselves."""
    from transformers import PreTrainedModel

    found: list[Any] = []
    waiting = list(model.children())
    while waiting:
        module = waiting.pop(0)
        if isinstance(module, PreTrainedModel) and not _joins(module.config):
            if _is_tower(module) and not any(module is other for other in found):
                found.append(module)
        else:
            waiting = [*module.children(), *waiting]
    return found


def _is_tower(module: Any) -> bool:
    """True where there is attention inside: a projector is no tower."""
    from pospatch.engine._seams import dispatches
    from pospatch.engine._sites import inv_freqs

    return any(
        dispatches(inner) or inv_freqs(inner) or "Attention" in type(inner).__name__ for inner in module.modules()
    )
