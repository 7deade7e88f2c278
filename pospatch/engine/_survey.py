"""What each attention really gets, seen in one small forward rather than guessed from names.

A layer's rotation is measured too: the same call is made once more with the rotation silenced, and q before and after says
whether the layer rotates at all, which dimensions, and how they are paired.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from pospatch.engine import _probe
from pospatch.engine._seams import (
    CACHES,
    KEYWORD,
    exchanged,
    first_input,
    first_output,
    identity_rotation,
    is_cross,
    register,
)
from pospatch.engine._sites import Sites, inv_freqs
from pospatch.engine._undo import Undo
from pospatch.engine._view import real, view
from pospatch.errors import PospatchError, SeamChanged, UnsupportedHost

__all__ = ["Seen", "declared", "survey"]


@dataclass(frozen=True)
class Seen:
    """Shapes and flags of one attention call.

    Args:
        length: tokens that the call attends over.
        rotates: False where the layer takes no part in the host's rotation.
        surveyed: True where a forward was looked at; what is not seen then is not known.
        turn: q before and after the native rotation (batch, heads, length, head_dim), or None where there is none to see.
    """

    heads: int
    kv_heads: int
    head_dim: int
    width: int
    scaling: float
    causal: bool
    window: int | None = None
    length: int = 0
    rotates: bool = True
    turn: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    surveyed: bool = False


@dataclass
class Survey:
    """Records what reaches one attention module's function."""

    path: str
    seen: dict[str, Seen]
    width: int = 0
    query: Tensor | None = None
    quiet: bool = False

    def see(self, module: nn.Module, query: Tensor, key: Tensor, kwargs: dict[str, Any], mask: Any) -> None:
        self.query = query
        if self.quiet:
            return
        causal = kwargs.get("is_causal")
        self.seen[self.path] = Seen(
            heads=query.shape[1],
            kv_heads=key.shape[1],
            head_dim=query.shape[-1],
            width=self.width,
            scaling=kwargs.get("scaling") or query.shape[-1] ** -0.5,
            causal=_hides_later(mask) or bool(getattr(module, "is_causal", True) if causal is None else causal),
            window=kwargs.get("sliding_window"),
            length=query.shape[2],
            surveyed=True,
        )


def _hides_later(mask: Any) -> bool:
    """True where the first query does not see the last key."""
    if not torch.is_tensor(mask) or mask.dim() != 4 or min(mask.shape[-2:]) < 2:
        return False
    corner = mask[0, 0, 0, -1]
    return not bool(corner) if corner.dtype == torch.bool else bool(corner < -1e4)


@dataclass
class _Watch:
    """One look at a model: hooks, what they saw, and which rotary outputs went by."""

    sites: Sites
    seen: dict[str, Seen] = field(default_factory=dict)
    crossing: set[str] = field(default_factory=set)
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any], Survey]] = field(default_factory=dict)
    rotations: list[Any] = field(default_factory=list)

    def enter(self, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if is_cross(kwargs):
                self.crossing.add(path)
                return None
            hidden = first_input(module, args, kwargs)
            look = Survey(path, self.seen, hidden.shape[-1])
            self.calls[path] = (args, kwargs, look)
            if path in self.sites.own:
                self.seen[path] = _own(module, hidden)
                return None
            return args, {**kwargs, KEYWORD: look}

        return hook

    def rotated(self, module: nn.Module, args: Any, output: Any) -> None:
        self.rotations.append(output)

    def silent(self, value: Any) -> Any:
        """A rotary output turned into no rotation; everything else as it is."""
        if any(value is output for output in self.rotations):
            return identity_rotation(value)
        if isinstance(value, tuple) and value and all(torch.is_tensor(item) for item in value):
            for output in self.rotations:
                if isinstance(output, tuple) and all(a is b for a, b in zip(output, value, strict=False)):
                    return identity_rotation(value)
        return value


def survey(model: Any, sites: Sites) -> dict[str, Seen]:
    """What each self-attention module hands to its function; modules that only attend to another sequence are left out.

    Raises:
        UnsupportedHost: a module was never reached, or does not hand keyword arguments on.
    """
    register()
    undo = Undo()
    watch = _Watch(sites)
    probe = sites.probe(model)
    try:
        for path, module in sites.attention.items():
            if path not in sites.own:
                undo.set_attribute(module, "config", view(module.config))
            undo.hook(module.register_forward_pre_hook(watch.enter(path), with_kwargs=True))
        for module in sites.rotary.values():
            undo.hook(module.register_forward_hook(watch.rotated))
        with _probe.quiet(model):
            _probe.forward(model, probe)
    except PospatchError:
        raise
    except Exception as error:
        if f"unexpected keyword argument {KEYWORD!r}" in str(error):
            raise UnsupportedHost(
                f"{type(model).__name__} has an attention that takes no keyword arguments, so nothing positional can reach it; "
                f"it says {str(error)[:200]!r}"
            ) from error
        raise UnsupportedHost(
            f"{type(model).__name__} does not run on the small input that its positions would be proven with; it says "
            f"{str(error)[:200]!r}"
        ) from error
    finally:
        undo.play()
    for path in watch.crossing - set(watch.seen):
        del sites.attention[path]
    for path, module in sites.attention.items():
        if path not in watch.seen:
            how = (
                "does not hand keyword arguments to its attention function" if path in watch.calls else "was not called"
            )
            raise UnsupportedHost(
                f"{path} ({type(module).__name__}) {how}, so nothing positional can reach it; {type(model).__name__} is refused"
            )
    if max(facts.length for facts in watch.seen.values()) < 2:
        raise UnsupportedHost(
            f"{type(model).__name__} makes a single token of its small input, which shows nothing of positions; it is refused"
        )
    for path in sites.own:
        if path in watch.seen:
            watch.seen[path] = replace(
                watch.seen[path], causal=_is_causal(model, sites.attention[path], *watch.calls[path])
            )
    if sites.rotary:
        _watch_rotation(model, sites, watch)
    return watch.seen


def _own(module: nn.Module, hidden: Tensor) -> Seen:
    """A module with its own mathematics: q and k stay inside, so its config speaks."""
    config = getattr(module, "config", None)
    names = ("num_attention_heads", "num_heads", "n_heads", "n_head")
    holders = (module,) if config is None else (module, real(config))
    heads = next((int(h) for n in names for o in holders if isinstance(h := getattr(o, n, None), int)), 1)
    return Seen(
        heads=heads,
        kv_heads=heads,
        head_dim=max(hidden.shape[-1] // heads, 1),
        width=hidden.shape[-1],
        scaling=max(hidden.shape[-1] // heads, 1) ** -0.5,
        causal=True,
        length=hidden.shape[1],
        surveyed=True,
    )


def _is_causal(
    model: nn.Module, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], look: Survey
) -> bool:
    """True where another last token changes nothing of what the first one gets."""
    hidden = first_input(module, args, kwargs)
    other = torch.cat((hidden[:, :-1], hidden[:, -1:] + 1), dim=1)
    kwargs = {name: None if name in CACHES else value for name, value in kwargs.items()}
    with _probe.quiet(model):
        first = first_output(module(*args, **kwargs))
        args, kwargs = exchanged(args, kwargs, hidden, other)
        second = first_output(module(*args, **kwargs))
    return bool(torch.equal(first[:, 0], second[:, 0]))


def _watch_rotation(model: nn.Module, sites: Sites, watch: _Watch) -> None:
    """Call each attention once more with its rotation silenced; q tells what the rotation did."""
    undo = Undo()
    try:
        for module in sites.rotary.values():
            undo.hook(module.register_forward_hook(_quiet_rotation))
        for path, (args, kwargs, look) in watch.calls.items():
            if path not in watch.seen or path in sites.own or look.query is None:
                continue
            module = sites.attention[path]
            before = look.query
            again = Survey(path, watch.seen, quiet=True)
            stilled = tuple(watch.silent(value) for value in args)
            keywords = {name: watch.silent(value) for name, value in kwargs.items()}
            keywords |= {name: None for name in CACHES if name in kwargs}
            config = vars(module).get("config")
            with _probe.quiet(model):
                vars(module)["config"] = view(real(module.config))
                try:
                    module(*stilled, **{**keywords, KEYWORD: again})
                except Exception:  # noqa: BLE001  a module that cannot be called alone stays unmeasured
                    continue
                finally:
                    vars(module)["config"] = config
            if again.query is None or again.query.shape != before.shape:
                continue
            size = before.float().abs().max().item()
            if size == 0:  # weights of zero show nothing
                continue
            moved = not torch.allclose(again.query.float(), before.float(), rtol=1e-4, atol=1e-5 * min(size, 1.0))
            watch.seen[path] = replace(watch.seen[path], rotates=moved, turn=(again.query, before) if moved else None)
    finally:
        undo.play()


def _quiet_rotation(module: nn.Module, args: Any, output: Any) -> Any:
    try:
        return identity_rotation(output)
    except SeamChanged:
        return output


def declared(sites: Sites) -> dict[str, Seen] | None:
    """What the configs say, for methods that only need the rotary module's own facts: no forward is run; None where they
    do not say it."""
    found = {}
    for path, module in sites.attention.items():
        facts = _declared(module, real(module.config)) if getattr(module, "config", None) is not None else None
        if facts is None:
            return None
        found[path] = facts
    return found if all(inv_freqs(module) for module in sites.rotary.values()) else None


def _declared(module: nn.Module, config: Any) -> Seen | None:
    names = ("num_attention_heads", "hidden_size", "head_dim", "num_key_value_heads")
    try:
        heads, width, head_dim, kv_heads = (getattr(config, name, None) for name in names)
    except Exception:  # noqa: BLE001  a config whose layers differ refuses to speak for all, with an error of its own
        return None
    if not isinstance(heads, int) or not isinstance(width, int):
        return None
    head_dim = int(head_dim or width // heads)
    scaling = getattr(module, "scaling", None)
    return Seen(
        heads=heads,
        kv_heads=kv_heads if isinstance(kv_heads, int) else heads,
        head_dim=head_dim,
        width=width,
        scaling=float(scaling if isinstance(scaling, int | float) else head_dim**-0.5),
        causal=bool(getattr(module, "is_causal", True)),
    )
