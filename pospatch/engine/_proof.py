"""The proof after attaching: every intended module is reached, and nothing positional of the host is left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from pospatch.engine import _alone, _probe, embedding, rotation
from pospatch.engine._plan import Plan
from pospatch.engine._seams import KEYWORD
from pospatch.engine.positions import Reindex
from pospatch.errors import PospatchError, SeamChanged, UnsupportedHost
from pospatch.methods._base import Bias

__all__ = ["prove"]

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.float16: 0.05, torch.bfloat16: 0.3}


def _tolerance(model: Any, dtype: torch.dtype) -> float:
    """What permuted tokens may differ by, as a share of the spread; projections rounded to integers amplify the last bit."""
    rounded = any("quant" in type(module).__module__ for module in model.modules()) or any(
        not parameter.dtype.is_floating_point for parameter in model.parameters()
    )
    return 0.3 if rounded else _TOLERANCE.get(dtype, 1e-3)


def prove(model: Any, plan: Plan, readers: dict[str, Reindex]) -> None:
    """Every intended module is reached, and with our own methods silent nothing positional is left of the host."""
    states: dict[str, Any] = {
        path: m._modules[KEYWORD] for path, m in plan.sites.attention.items() if KEYWORD in m._modules
    }
    added = [module for module in model.modules() if isinstance(module, embedding.AddedTable)]
    probe = plan.sites.probe(model)
    with _probe.quiet(model), _told(model):
        if plan.by_module and not states and not readers:
            _prove_respun(model, probe)
            _alone.prove_read(model, plan, probe)
            return
        _probe.forward(model, probe)
        if missed := [path for path, reindex in readers.items() if not reindex.reached]:
            raise SeamChanged(
                f"{missed[0]} was not asked for positions by {type(model).__name__}; it is left unpatched"
            )
        if missed := [path for path, state in states.items() if not state.reached]:
            raise SeamChanged(
                f"{missed[0]} was not reached by its attention function; {type(model).__name__} is left unpatched"
            )
        _prove_biased(model, plan, states, probe)
        if (
            plan.clearing
            and not plan.partial
            and not plan.by_module
            and (not plan.sites.tables or "embedding" not in plan.slots)
        ):
            _prove_cleared(model, plan, probe, [*states.values(), *added])


@contextmanager
def _told(model: Any) -> Iterator[None]:
    """A model that ran before and does not run with the patch is left as it was, with what it said."""
    try:
        yield
    except (PospatchError, _Reached):
        raise
    except Exception as error:
        raise SeamChanged(
            f"{type(model).__name__} does not run with the patch ({type(error).__name__}: {str(error)[:200]}); "
            "it is left unpatched"
        ) from error


class _Reached(Exception):
    """Ends a proof forward early: what was to be shown has been seen."""


def _prove_respun(model: Any, probe: dict[str, Tensor]) -> None:
    """The new rotary module is what the model calls, and it turns by our frequencies; the forward ends there."""

    def reached(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not module.serves(args, kwargs):  # type: ignore[operator]
            return
        if not module.turns_by_spectrum(args, kwargs, output):  # type: ignore[operator]
            raise SeamChanged(
                f"{type(model).__name__}: {type(module.host).__name__} does not turn by its frequencies at token positions (it "
                "computes its own, or turns by coordinates), so new ones would not mean what they say; it is left unpatched"
            )
        raise _Reached

    respun = [module for module in model.modules() if isinstance(module, rotation.FrequencyModule)]
    for module in respun:
        handle = module.register_forward_hook(reached, with_kwargs=True)
        try:
            _probe.forward(model, probe)
        except _Reached:
            continue
        finally:
            handle.remove()
        raise SeamChanged(
            f"{type(model).__name__} did not call its rotary module {type(module.host).__name__}; it is left unpatched"
        )


class _Shake(Bias):
    """A bias that nothing could mistake for none."""

    def bias(self, query_positions: Tensor, key_positions: Tensor, weights: Any, geometry: Any) -> Tensor:
        shape = (1, geometry.heads, query_positions.shape[1], key_positions.shape[1])
        return (
            torch.linspace(-8, 8, shape[1] * shape[2] * shape[3], device=query_positions.device).view(shape).sin() * 8
        )


def _prove_biased(model: Any, plan: Plan, states: dict[str, Any], probe: dict[str, Tensor]) -> None:
    """Where the bias goes into an argument of an attention with its own mathematics, it must change what comes out."""
    biased = [states[path] for path in plan.sites.own if path in states and states[path].score is not None]
    if not biased:
        return
    own = [state.methods for state in biased]
    try:
        for state in biased:
            state.methods = {name: item for name, item in state.methods.items() if name != "score"}
        without = _probe.forward(model, probe)
        for state in biased:
            state.methods = {**state.methods, "score": _Shake()}
        shaken = _probe.forward(model, probe)
    finally:
        for state, methods in zip(biased, own, strict=True):
            state.methods = methods
    if all(torch.allclose(without[name], shaken[name]) for name in without):
        raise SeamChanged(
            f"a bias in {plan.sites.host.carrier!r} changes nothing in {type(model).__name__}; it is left unpatched"
        )


def _prove_cleared(model: Any, plan: Plan, probe: dict[str, Tensor], ours: list[Any]) -> None:
    """With ours silent and every token seeing every token, permuting the tokens must permute the output and do nothing else."""
    for item in ours:
        item.proof = True
    opened = _alone.open_buffers(plan.sites)
    try:
        if plan.sites.host.order:
            return _alone.prove_alone(model, plan, probe, _tolerance)
        permuted = _permuted(model, plan, probe)
        if permuted is None:
            if plan.sites.detected:
                raise UnsupportedHost(
                    f"no row describes the family {model.config.model_type!r}, and its {list(probe)} cannot be permuted to "
                    "prove that nothing positional is left; it is refused"
                )
            return _alone.prove_alone(model, plan, probe, _tolerance)
        straight, turned, order, names = permuted
    finally:
        for item in ours:
            item.proof = False
        opened.play()
    for name in names:
        value = straight[name]
        gap = (value[:, order].float() - turned[name].float()).abs().max().item()
        size = value.float().std().item() + 1e-12
        if not gap <= _tolerance(model, value.dtype) * max(size, 1e-3):
            raise SeamChanged(
                f"{type(model).__name__} still knows positions after its known sites were cleared: permuted tokens change "
                f"{name} by {gap:.2e} (its spread is {size:.2e}); it is left unpatched"
            )


def _permuted(model: Any, plan: Plan, probe: dict[str, Tensor]) -> Any:
    """(outputs, outputs of permuted inputs, the order of the output's tokens, outputs to compare), or None."""
    half = plan.sites.stack
    if "input_ids" in probe:
        ids = probe["input_ids"]
        order = torch.arange(ids.shape[1] - 1, -1, -1, device=ids.device)
        turned = {**probe, "input_ids": ids if half == "decoder" else ids[:, order]}
        straight = _probe.forward(model, probe)
        outputs = [name for name in straight if half is None or (half == "encoder") == name.startswith("encoder")]
        if any(straight[name].dim() != 3 or straight[name].shape[1] != len(order) for name in outputs):
            return None
        decoder = None if half == "encoder" else ids[:, order]
        return straight, _probe.forward(model, turned, decoder if plan.paired else None), order, outputs
    return _alone.permuted_patches(model, probe)
