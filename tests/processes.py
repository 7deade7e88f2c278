"""Run by torchrun in two processes: what training and patched models compute there; numbers go to a JSON file.

    torchrun --nproc_per_node 2 -m tests.processes JOB.json

Context parallelism cannot run on a CPU, so its two forms are restated from torch's and DeepSpeed's sources: the attention
function at the bottom gathers keys (ring) or exchanges tokens for heads (Ulysses); everything above it is the real thing.
"""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import pospatch
from pospatch import registry
from pospatch.errors import PospatchError
from tests import tiny

LENGTH = 48  # beyond the trained length of tiny.LENGTH, so that what goes by the length shows
STACKS: dict[str, list[Any]] = {"bipe": ["learned", "rope", ("bipe", {"delimiters": [5, 9, 30]})]}


def patched(name: str, hosts: tuple[str, ...] = ("llama", "opt")) -> Any:
    """A tiny model with loud weights of the first host that takes the method, or None."""
    for host in hosts:
        model = tiny.build(host)
        try:
            if name in STACKS:
                pospatch.apply(model, STACKS[name], length=LENGTH)
            else:
                pospatch.apply(model, name, **_options(name, model))
        except PospatchError:
            continue
        return tiny.spread(model)
    return None


def _options(name: str, model: Any) -> dict[str, Any]:
    options = tiny.options(name, model)
    return {**options, "length": LENGTH} if name in ("learned", "sinusoidal", "pose", "randomized") else options


def shard(length: int, rank: int, ranks: int, order: str) -> Tensor:
    """The tokens of one process: a contiguous part, or, as torch's load balancer deals them, chunks r and 2 * ranks - 1 - r."""
    if order == "contiguous":
        return torch.arange(length).chunk(ranks)[rank]
    chunks = torch.arange(length).chunk(2 * ranks)
    return torch.cat((chunks[rank], chunks[2 * ranks - 1 - rank]))


class _Gather(torch.autograd.Function):
    """The parts of all processes one after another along dimension `dim`; the gradient of a part is the sum of all of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size(), ctx.dim)[dist.get_rank()], None


def gather(x: Tensor, dim: int) -> Tensor:
    return _Gather.apply(x, dim)


def ring(function: Any, order: str) -> Callable[..., Any]:
    """torch's context parallelism: no mask but the causal triangle of the whole sequence, keys of all processes."""

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        if mask is not None or kwargs.get("position_bias") is not None:
            raise NotImplementedError("attn_bias is not supported yet")
        ranks = dist.get_world_size()
        parts = [shard(LENGTH, rank, ranks, order) for rank in range(ranks)]
        seen = torch.cat(parts)[None] <= parts[dist.get_rank()][:, None]
        kwargs["is_causal"] = False
        return function(module, query, gather(key, 2), gather(value, 2), seen[None, None], **kwargs)

    return attention


def ulysses(function: Any, head_dim: int) -> Callable[..., Any]:
    """DeepSpeed's: all tokens and a share of the heads; heads of the model's own size alone."""

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        if query.shape[-1] != head_dim:
            raise AssertionError("query input tensor does not match the required shape")
        rank, ranks = dist.get_rank(), dist.get_world_size()
        query, key, value = (gather(x, 2).chunk(ranks, 1)[rank] for x in (query, key, value))
        output, weights = function(module, query, key, value, mask, **kwargs)
        return gather(output, 2).chunk(ranks, 1)[rank], weights

    return attention


def compared(name: str) -> dict[str, Any] | None:
    """A patched model in parts, and with its weights shared out, against the same one whole; None where no host takes it."""
    model = patched(name)
    if model is None:
        return None
    whole = Whole(model.train())
    found = {"ulysses": in_parts(whole, "ulysses", "contiguous")}
    with masks_dropped(model):
        found |= {order: in_parts(whole, "ring", order) for order in ("contiguous", "head-tail")}
    return {**found, "fsdp": sharded(whole)}


class Whole:
    """What one process computes."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.tokens = tiny.ids(batch=2, length=LENGTH)
        self.upstream = torch.randn(2, LENGTH, tiny.VOCABULARY, generator=torch.Generator().manual_seed(1))
        torch.manual_seed(7)
        self.logits = model(input_ids=self.tokens, use_cache=False).logits
        self.gradients = _gradients(model, self.logits, self.upstream)
        self.logits = self.logits.detach()


@contextmanager
def masks_dropped(model: Any) -> Iterator[None]:
    """accelerate's own hooks for context parallelism, for a while."""
    from accelerate.big_modeling import _attach_context_parallel_hooks

    held = {module: set(module._forward_pre_hooks) for module in model.modules()}
    _attach_context_parallel_hooks(model)
    yield
    for module, before in held.items():
        for added in set(module._forward_pre_hooks) - before:
            del module._forward_pre_hooks[added], module._forward_pre_hooks_with_kwargs[added]


def in_parts(whole: Whole, scheme: str, order: str) -> dict[str, Any]:
    """Largest differences of logits and gradients between the parts of all processes and the whole, or the error."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model, wanted = whole.model, whole.gradients
    own = shard(LENGTH, dist.get_rank(), dist.get_world_size(), order)
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
    head_dim = model.config.hidden_size // model.config.num_attention_heads
    ALL_ATTENTION_FUNCTIONS["sdpa"] = ring(plain, order) if scheme == "ring" else ulysses(plain, head_dim)
    torch.manual_seed(7 + dist.get_rank())
    error = ""
    try:
        part = model(input_ids=whole.tokens[:, own], position_ids=own[None].expand(2, -1), use_cache=False).logits
        got = _gradients(model, part, whole.upstream[:, own])
    except (NotImplementedError, RuntimeError, AssertionError, ValueError) as raised:
        error = f"{type(raised).__name__}: {raised}"[:120]
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]
    if _largest(torch.tensor(float(bool(error)))):
        return {"error": error or "in another process"}
    for key in sorted(wanted):  # one process may lack a gradient that another has
        got.setdefault(key, torch.zeros_like(wanted[key]))
        dist.all_reduce(got[key])
    return {"logits": _largest((part - whole.logits[:, own]).abs().max()), "gradients": _apart(got, wanted)}


def sharded(whole: Whole) -> dict[str, Any]:
    """The same between the model with its weights shared out by FSDP2 and as it was; the model stays shared out."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = whole.model
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in next(module for module in model.modules() if isinstance(module, nn.ModuleList)):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.zero_grad()
    torch.manual_seed(7)
    part = model(input_ids=whole.tokens, use_cache=False).logits
    got = {key: value.full_tensor() for key, value in _gradients(model, part, whole.upstream).items()}
    placed = all(hasattr(value, "placements") for value in model.parameters())
    logits = _largest((part - whole.logits).abs().max())
    return {"logits": logits, "gradients": _apart(got, whole.gradients), "placed": placed}


def _gradients(model: Any, logits: Tensor, upstream: Tensor) -> dict[str, Any]:
    model.zero_grad()
    (logits * upstream).sum().backward()
    return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}


def _apart(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Largest difference of a gradient as a share of its largest number, over all tensors."""
    assert got.keys() == wanted.keys(), got.keys() ^ wanted.keys()
    return max(float((got[k] - wanted[k]).abs().max() / (1 + wanted[k].abs().max())) for k in wanted)


def _largest(number: Tensor) -> float:
    number = number.detach().clone()
    dist.all_reduce(number, op=dist.ReduceOp.MAX)
    return float(number)


def trained(job: dict[str, Any]) -> None:
    """Runs of the recipe: each whole, then from its middle checkpoint in a folder of its own."""
    from pospatch.training import main

    for config in job["configs"]:
        folder = Path(config).parent
        main(["--config", config, "--output_dir", str(folder / "whole")])
        if dist.get_rank() == 0:
            shutil.copytree(folder / "whole", folder / "half")
            for made in ("checkpoint-6", "model", "adapter"):
                shutil.rmtree(folder / "half" / made, ignore_errors=True)
        dist.barrier()
        main(["--config", config, "--output_dir", str(folder / "half")])


def main_of(job: dict[str, Any]) -> None:
    """All of one job."""
    warnings.simplefilter("ignore")
    trained(job)  # starts the process group
    found = {name: compared(name) for name in registry.names()}
    if dist.get_rank() == 0:
        Path(job["output"]).write_text(json.dumps(found, indent=1))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main_of(json.loads(Path(sys.argv[1]).read_text()))
