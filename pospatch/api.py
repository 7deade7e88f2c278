"""The two calls everything starts from: `apply` puts a method on a model, `remove` takes everything off again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from pospatch import registry
from pospatch.engine._patch import Patch, attach, merge
from pospatch.errors import AlreadyPatched, BadOptionType, NotPatched, UnsupportedHost, suggest

if TYPE_CHECKING:
    from torch import Tensor

    from pospatch.methods._base import Method

__all__ = ["apply", "coordinates", "methods_of", "patch_of", "refuse_skeleton", "remove", "unwrap"]

Model = TypeVar("Model")
KEY = "_pospatch"


def apply(model: Model, method: str | Method | Sequence[Any], *, part: str | None = None, **options: Any) -> Model:
    """Change the positional mechanism of a model in place and return the same object.

    Args:
        model: any `PreTrainedModel`: base model, task head, or wrapped by peft; any dtype and device. Where no row describes
            its family, the wiring is detected, proven on the model at hand, and a warning says so.
        method: a registry name, a method object, or a list of them. In a list an item may be (name, {options}); keyword
            options go to the one method of the list that declares them.
        part: "encoder" or "decoder" of a model that has both; None is the whole of an encoder-decoder. Of a model that joins
            towers the decoder reads text and the encoder images or sound; None is the one that reads text. Cross-attention is
            left alone.
        options: the method's options; see `pospatch methods NAME`.

    A method applied again replaces itself (with the same options nothing changes); methods in different slots compose.

    Raises:
        UnknownName: no such method (with a suggestion).
        BadOption, BadOptionType: an option that is unknown, ill typed or out of range.
        UnsupportedHost: the model, or this pair of model and method, cannot work; with the reason.
        AlreadyPatched: another method holds a site that this one needs, or another part of the model is patched.
        SeamChanged: the proof after attaching failed.
    The model is left exactly as it was whenever an error is raised.

    >>> model = pospatch.apply(model, "yarn", factor=4.0)  # doctest: +SKIP
    """
    target = unwrap(model)
    added = methods_of(method, options)
    refuse_skeleton(target)
    from pospatch.checkpoint import adopted, arm

    with adopted(target):
        if not _extend(target, added, part):
            return model
    arm(target, model)
    return model


def _extend(target: Any, added: list[Method], part: str | None) -> bool:
    """Put more methods on what stands; False where they stand there already."""
    old = patch_of(target)
    if old is not None and part is not None and part != old.part:
        raise AlreadyPatched(
            f"part={part!r}: {type(target).__name__} carries a patch of its {old.part or 'whole'}, and one patch has one part; "
            "call pospatch.remove(model) first"
        )
    stack = merge(old.stack if old is not None else [], added)
    if old is not None and stack == old.stack:
        return False
    _exchange(target, old, stack, old.part if old is not None else part)
    return True


def refuse_skeleton(target: Any) -> None:
    """A patch is proven by a forward, which needs weights; offloaded ones come in by accelerate's hooks."""
    bare = next((name for name, value in target.named_parameters() if value.device.type == "meta"), None)
    if bare is not None and not any(hasattr(module, "_hf_hook") for module in target.modules()):
        raise UnsupportedHost(
            f"{bare} has no memory yet (device meta), and a patch is proven by a forward; load the weights first: "
            "from_pretrained does so shard by shard, and a saved patch is put on as it loads"
        )


def remove(model: Model) -> Model:
    """Take every method off: outputs, state_dict, classes, config, hooks and requires_grad as before, to the bit.

    Weights that were trained meanwhile stay trained; tensors of the patch itself are dropped.

    Raises:
        NotPatched: the model carries no patch.
    """
    target = unwrap(model)
    from pospatch.checkpoint import adopt, disarm

    adopt(target)
    patch = patch_of(target)
    if patch is None:
        raise NotPatched(f"{type(target).__name__} carries no patch and was not changed; see pospatch.inspect(model)")
    disarm(target)
    patch.detach()
    del vars(target)[KEY]
    return model


@contextmanager
def coordinates(model: Any, where: Tensor) -> Iterator[None]:
    """Give the tokens of a patched model coordinates of your own: any numbers, seconds or metres as well as counts.

    Args:
        where: (batch or 1, length), or (batch or 1, length, axes) for a method of several axes. Every call of the model inside
            the block reads them in place of positions, in all layers.

    Raises:
        BadOption: another number of axes than the method takes, or of tokens than a call has.
        UnsupportedHost: what stands on the model does not turn q and k by positions alone; or the model is trained with
            gradient checkpointing, whose backward would repeat layers without them.

    >>> with pospatch.coordinates(model, points):  # doctest: +SKIP
    ...     output = model(inputs_embeds=features)
    """
    from pospatch.engine.coordinates import given

    with given(unwrap(model), where):
        yield


def _exchange(target: Any, old: Patch | None, stack: list[Method], part: str | None) -> None:
    """Replace one attachment by another; on failure the old one stands again."""
    if old is None:
        vars(target)[KEY] = attach(target, stack, {}, part)
        return
    old.rehearse(target, stack)
    old.detach()
    try:
        vars(target)[KEY] = attach(target, stack, old.kept_for(stack), part)
    except BaseException:
        vars(target)[KEY] = attach(target, old.stack, old.kept, part)
        raise


def patch_of(model: Any) -> Patch | None:
    """The patch that stands on a model, or None."""
    return vars(unwrap(model)).get(KEY)


def unwrap(model: Any) -> Any:
    """The `PreTrainedModel` inside peft's and accelerate's wrappers.

    Raises:
        UnsupportedHost: there is none.
    """
    from transformers import PreTrainedModel

    inner = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    while not isinstance(inner, PreTrainedModel) and hasattr(inner, "module"):
        inner = inner.module
    if not isinstance(inner, PreTrainedModel):
        raise UnsupportedHost(f"a transformers PreTrainedModel is wanted, got {type(model).__name__}")
    return inner


def methods_of(method: Any, options: dict[str, Any]) -> list[Method]:
    """What `apply` takes as method objects, their options checked; no model is needed."""
    from pospatch.methods._base import Method

    if isinstance(method, Method):
        _none_left(method.name, options)
        return [method]
    if isinstance(method, str) or not isinstance(method, Sequence):
        return [registry.build(method, **options)]
    items = [item if isinstance(item, tuple | Method) else (item, {}) for item in method]
    own = [item if isinstance(item, Method) else (item[0], dict(item[1])) for item in items]
    _share(own, options)
    return [item if isinstance(item, Method) else registry.build(item[0], **item[1]) for item in own]


def _none_left(name: str, options: dict[str, Any]) -> None:
    if options:
        raise BadOptionType(f"{name} was given as an object, so its options are set already; got {sorted(options)}")


def _share(own: list[Any], options: dict[str, Any]) -> None:
    """Give each keyword option to the one method of a list that declares it."""
    declared = {
        item[0]: {f.name for f in fields(registry.method_class(item[0]))} for item in own if isinstance(item, tuple)
    }
    for option, value in options.items():
        takers = [item for item in own if isinstance(item, tuple) and option in declared[item[0]]]
        if not takers:
            every = sorted(set().union(*declared.values())) if declared else []
            raise BadOptionType(
                f"none of {list(declared)} has an option {option!r}.{suggest(option, every)} Valid: {', '.join(every)}"
            )
        if len(takers) > 1:
            raise BadOptionType(
                f"option {option!r} fits {[t[0] for t in takers]}; give it with the method: "
                f"[({takers[0][0]!r}, {{{option!r}: ...}}), ...]"
            )
        takers[0][1][option] = value
