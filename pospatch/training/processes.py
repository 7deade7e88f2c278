"""How many processes train and how they share the work: what was asked for is what runs, or nothing does.

Launchers fall back without a word: accelerate starts one process on a CPU whatever its file says, and turns FSDP on a CPU into
DDP. What was asked for stands in the flags of the run and in the environment that accelerate's file was turned into.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pospatch.api import patch_of, unwrap
from pospatch.engine._sites import is_fixed
from pospatch.errors import BadOption, SeamChanged, UnsupportedHost
from pospatch.methods._base import Bands, Rotary
from pospatch.methods._shards import TEXT, refusal
from pospatch.registry import build

__all__ = ["asked", "check", "check_count", "check_lengths", "check_patch", "check_wrapped", "running"]


def check_count(running: int, wanted: int | None, environment: Mapping[str, str] = os.environ) -> None:
    """Raise where other processes run than were asked for; before anything is loaded.

    Raises:
        BadOption: naming both, and the launcher that starts them.
    """
    several = {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= set(environment) and "WORLD_SIZE" not in environment
    if wanted is None and running == 1 and several:  # accelerate writes both where it was told to start more than one
        raise BadOption(
            "accelerate was told to start several processes and started one, as it always does on a CPU; use "
            "torchrun --nproc_per_node 2 recipes/finetune.py, or num_processes: 1 in accelerate's file"
        )
    if wanted is not None and running != wanted:
        raise BadOption(
            f"num_processes is {wanted} and {running} are running: accelerate starts one process on a CPU whatever its file "
            f"says; use torchrun --nproc_per_node {wanted}, or set num_processes to {running}"
        )


def asked(environment: Mapping[str, str] = os.environ) -> str | None:
    """The scheme that accelerate's file or flags name; None where they leave it open."""

    def says(name: str) -> bool:
        return environment.get(name, "").lower() == "true"

    if says("ACCELERATE_USE_PARALLELISM_CONFIG"):
        for scheme, size in (("ring", "PARALLELISM_CONFIG_CP_SIZE"), ("ulysses", "PARALLELISM_CONFIG_SP_SIZE")):
            if int(environment.get(size, "1")) > 1:
                return scheme
    if says("ACCELERATE_USE_DEEPSPEED"):
        return "deepspeed"
    return "fsdp" if says("ACCELERATE_USE_FSDP") else None


def running(accelerator: Any) -> str:
    """The scheme that an accelerator carries out."""
    config = getattr(accelerator, "parallelism_config", None)
    if config is not None and config.cp_enabled:
        return "ring"
    if config is not None and config.sp_enabled:
        return "ulysses"
    kind = accelerator.distributed_type.value
    return {"NO": "one", "FSDP": "fsdp", "DEEPSPEED": "deepspeed"}.get(kind, "ddp" if "MULTI" in kind else kind.lower())


def check(accelerator: Any, wanted: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """The scheme that runs, once it is certain that it is the one that was asked for.

    Raises:
        BadOption: another one runs, or FSDP of the first version.
    """
    found = running(accelerator)
    for scheme, who in ((wanted, "parallel"), (asked(environment), "accelerate's configuration")):
        if scheme is not None and scheme != found:
            raise BadOption(
                f"{who} asks for {scheme} and {found} is running on {accelerator.num_processes} processes "
                f"({accelerator.device.type}): FSDP and DeepSpeed need accelerators, and on a CPU accelerate turns them into "
                f"DDP or one process; ask for {found}, or start it on a machine with GPUs"
            )
    if found in ("fsdp", "ring") and not accelerator.is_fsdp2:
        raise BadOption(
            "FSDP of version 1 wraps modules that a patch has changed; set fsdp_version: 2 in accelerate's file"
        )
    return found


def check_wrapped(wrapped: Any, scheme: str) -> None:
    """Raise where the model that is about to be trained is not wrapped as its scheme says: each process would train alone.

    Raises:
        SeamChanged: naming the wrapper that was expected.
    """
    expected = {"ddp": "DistributedDataParallel", "fsdp": "FSDPModule", "ring": "FSDPModule"}.get(scheme)
    expected = "DeepSpeedEngine" if scheme in ("deepspeed", "ulysses") else expected
    if expected is not None and expected not in {cls.__name__ for cls in type(wrapped).__mro__}:
        raise SeamChanged(
            f"{scheme} trains a model wrapped as {expected}, and accelerate left {type(wrapped).__name__}: gradients would "
            "not be shared; nothing was trained"
        )


def check_lengths(lengths: Sequence[int], scheme: str, accelerator: Any) -> None:
    """Raise where sequences that are cut into pieces of these lengths cannot be shared out.

    Raises:
        BadOption: naming the length, or the scheme that has cut them already.
    """
    if lengths and scheme == "ulysses":
        raise BadOption("ulysses cuts sequences before length_warmup or length_mix can: leave them out")
    parts = 2 * accelerator.parallelism_config.cp_size if scheme == "ring" else 1
    if bad := [length for length in lengths if length % parts]:
        raise BadOption(f"ring cuts each sequence into {parts} parts, and a length of {bad[0]} has no such parts")


def check_patch(model: Any, scheme: str, coming: Sequence[tuple[str, dict[str, Any]]] = ()) -> None:
    """Raise where what stands on a model, or is coming, would compute something else under a scheme than alone; packed documents
    are one.

    Raises:
        UnsupportedHost: naming the method and the reason.
    """
    patch = patch_of(model)
    stack = patch.stack if patch is not None else []
    layers = [*patch.layers.values()] if patch is not None else [TEXT]
    for method in (*stack, *(build(name, **options) for name, options in coming)):
        if why := next(filter(None, (refusal(method, scheme, geometry) for geometry in layers)), None):
            instead = (
                "keep documents apart" if scheme == "packing" else "share the work by DDP, FSDP or DeepSpeed's ZeRO"
            )
            raise UnsupportedHost(f"{method.name} cannot be trained under {scheme}: it {why}; {instead}")
    gone = any(
        method.clears or isinstance(method, Rotary | Bands) for method in stack if method.layers in (None, "all")
    )
    if scheme in ("ring", "ulysses", "packing") and not gone:
        _check_own_rule(unwrap(model).config.get_text_config(), scheme)


def _check_own_rule(config: Any, scheme: str) -> None:
    """The model's own rotary encoding, where no patch took its place in all layers."""
    own = getattr(config, "rope_parameters", None) or {}
    for each in (own, *own.values()):
        kind = each.get("rope_type") if isinstance(each, dict) else None
        if kind is not None and not is_fixed(kind, each):
            raise UnsupportedHost(
                f"the model's own rotary encoding ({kind}) goes by the length at hand, and under {scheme} that is not the "
                "length of a sequence; patch it with yarn, or share the work by DDP or FSDP"
            )
