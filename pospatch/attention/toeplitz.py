"""Attention with a bias of distance alone, from a flash kernel that reads the bias as a mask which is never written out.

Such a bias is constant along the diagonals of its matrix. With the queries of a block in reverse order element (i, j) is entry
i + j of one list: a view of that list with strides (1, 1), which the kernel takes for a mask. Keys after a causal query are
entries of minus infinity, and keys after a whole block are left out. So are keys so far off that a head's bias leaves them no
weight that rounding would let through: a steep head of ALiBi costs what its neighbourhood costs, whatever the length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["takes_kernel", "toeplitz"]

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

BLOCK_SCORES = 2**22  # logits held at once where the gradient of the bias is wanted
LOST = {torch.float64: 88.0}  # nats below a row's largest weight at which even a million keys are lost in rounding
LOST_IN_FLOAT = 40.0
LEAST, MOST = 128, 1024  # queries of a block


@dataclass(frozen=True)
class Group:
    """Heads of queries, those of keys, and how far back and ahead they look from a query's own key."""

    heads: Any
    kv_heads: Any
    back: int
    ahead: int


def takes_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """True where the CPU's kernel runs on these (batch, heads, length, head_dim)."""
    return (
        query.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and query.shape[-1] == key.shape[-1] == value.shape[-1]
        and query.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    )


def toeplitz(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, causal: bool, scaling: float) -> Tensor:
    """Attention (batch, heads, query, head_dim) whose queries are the last of as many tokens as there are keys.

    Args:
        query: (batch, heads, query, head_dim).
        key, value: (batch, kv_heads, key, head_dim); not repeated.
        bias: offsets in nats (heads, query + key - 1), float32: entry p is that of the distance key - 1 - p.
        causal: no query sees a key after itself.
    """
    queries, keys = query.shape[2], key.shape[2]
    if causal:
        ahead = torch.arange(bias.shape[1], device=bias.device) >= keys
        bias = bias.masked_fill(ahead, float("-inf"))
    if bias.dtype != query.dtype and query.dtype == torch.float64:
        bias = bias.double()
    assert bias.shape == (query.shape[1], queries + keys - 1)  # one entry for each distance there is
    return _Toeplitz.apply(query, key, value, bias.contiguous(), causal, scaling)


class _Toeplitz(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, causal: bool, scaling: float
    ) -> Tensor:
        whole = ctx.needs_input_grad[3]  # a gradient is wanted of every entry
        ctx.groups = _groups(query, key, bias, causal, None if whole else scaling)
        ctx.scaling = scaling
        output, total = torch.empty_like(query), query.new_empty(query.shape[:3], dtype=bias.dtype)
        for group in ctx.groups:
            for rows, columns in _blocks(query.shape[2], key.shape[2], group):
                k, v = (x[:, group.kv_heads, columns] for x in (key, value))
                out, lse = _forward(
                    query[:, group.heads, rows].flip(2), k, v, 0.0, False,
                    attn_mask=_mask(bias, group, rows, columns, query.shape[2]), scale=scaling,
                )  # fmt: skip
                output[:, group.heads, rows], total[:, group.heads, rows] = out.flip(2), lse.flip(2)
        ctx.save_for_backward(query, key, value, bias, output, total)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        wanted = ctx.needs_input_grad[3]
        saved = ctx.saved_tensors  # once: under a checkpoint each look makes the forward again
        query, key, value, bias, *_ = saved
        wide = torch.promote_types(query.dtype, torch.float32)
        dq, dk, dv = (torch.zeros_like(x, dtype=wide) for x in (query, key, value))
        dbias = torch.zeros_like(bias) if wanted else None
        most = BLOCK_SCORES // (query.shape[0] * query.shape[1] * key.shape[2]) if wanted else None
        piece = _by_hand if wanted else _by_kernel
        for group in ctx.groups:
            for rows, columns in _blocks(query.shape[2], key.shape[2], group, most):
                found = piece(saved, ctx.scaling, grad, group, rows, columns)
                dq[:, group.heads, rows] = found[0].flip(2).to(wide)
                dk[:, group.kv_heads, columns] += found[1]
                dv[:, group.kv_heads, columns] += found[2]
                if dbias is not None:
                    sums = found[3]
                    start = query.shape[2] - rows.stop
                    dbias[:, start : start + sums.shape[1]] += sums
        return dq.to(query.dtype), dk.to(key.dtype), dv.to(value.dtype), dbias, None, None


def _groups(query: Tensor, key: Tensor, bias: Tensor, causal: bool, scaling: float | None) -> list[Group]:
    """Heads that look about as far; without `scaling` all of them, everywhere.

    A row sees its own key, so a key's share of it is at most e to (bias there - bias here + gap), where the gap is what the
    dot products of one query can differ by: twice the longest q times the longest k, counted from the middle of the keys.
    """
    keys, ahead = key.shape[2], 0 if causal else query.shape[2] - 1
    whole = [Group(slice(None), slice(None), keys - 1, ahead)]
    if scaling is None or query.shape[2] < LEAST:
        return whole
    share = query.shape[1] // key.shape[1]
    longest_q = torch.linalg.vector_norm(query, dim=-1, dtype=bias.dtype).amax(dim=(0, 2))
    longest_k = torch.stack([_longest(one.to(bias.dtype)) for one in key.unbind(1)])
    gap = 2 * abs(scaling) * longest_q * longest_k.repeat_interleave(share)
    least = bias[:, keys - 1] - gap - LOST.get(query.dtype, LOST_IN_FLOAT)
    seen = ~(bias < least[:, None])  # so written that NaN sees everything
    first = seen.int().argmax(dim=1)
    last = bias.shape[1] - 1 - seen.flip(1).int().argmax(dim=1)
    back, front = (keys - 1 - first).unflatten(0, (-1, share)).amax(dim=1), last.unflatten(0, (-1, share)).amax(dim=1)
    together: dict[int, list[int]] = {}
    for head, far in enumerate(back.tolist()):
        together.setdefault(min(far, keys - 1).bit_length() if 2 * far < keys else -1, []).append(head)
    if len(together) == 1 and -1 in together:
        return whole
    return [
        Group(
            [head * share + i for head in heads for i in range(share)],
            heads,
            int(back[heads].max()),
            min(ahead, max(0, int(front[heads].max()) - (keys - 1))),
        )
        for heads in together.values()
    ]


def _longest(keys: Tensor) -> Tensor:
    """The largest distance of the keys (batch, key, d) of one head from their middle."""
    return torch.linalg.vector_norm(keys - keys.mean(dim=1, keepdim=True), dim=-1).amax()


def _blocks(queries: int, keys: int, group: Group, most: int | None = None) -> list[tuple[slice, slice]]:
    """Blocks of queries, and the keys that they see: large ones suit the kernel, small ones waste less of the triangle."""
    size = max(LEAST, min(MOST, queries // 4, group.back)) if most is None else max(1, min(queries, most))
    found, before = [], keys - queries
    for start in range(0, queries, size):
        stop = min(start + size, queries)
        found.append(
            (slice(start, stop), slice(max(0, before + start - group.back), min(keys, before + stop + group.ahead)))
        )
    return found


def _mask(bias: Tensor, group: Group, rows: slice, columns: slice, queries: int) -> Tensor:
    """(1, heads, rows, columns), rows from the last to the first: a view of the list."""
    start, height, width = queries - rows.stop + columns.start, rows.stop - rows.start, columns.stop - columns.start
    bias = bias[group.heads, start : start + height + width - 1]
    return bias.as_strided((1, bias.shape[0], height, width), (0, bias.stride(0), 1, 1), bias.storage_offset())


def _by_kernel(
    saved: Any, scaling: float, grad: Tensor, group: Group, rows: slice, columns: slice
) -> tuple[Tensor, ...]:
    query, key, value, bias, output, total = saved
    grad, q, out, lse = (x[:, group.heads, rows].flip(2) for x in (grad, query, output, total))
    mask = _mask(bias, group, rows, columns, query.shape[2])
    k, v = (x[:, group.kv_heads, columns] for x in (key, value))
    return tuple(_backward(grad, q, k, v, out, lse, 0.0, False, attn_mask=mask, scale=scaling))


def _by_hand(saved: Any, scaling: float, grad: Tensor, group: Group, rows: slice, columns: slice) -> tuple[Tensor, ...]:
    """The same of all heads, and the gradient of the bias: that of the logits, summed along the diagonals."""
    query, key, value, bias, output, total = saved
    share = query.shape[1] // key.shape[1]
    # heads that share keys lie in one matrix: (batch, kv_heads, share * rows, head_dim)
    grad, q, out, lse = (_grouped(x[:, :, rows].flip(2).to(bias.dtype), share) for x in (grad, query, output, total))
    k, v = (x[:, :, columns].to(bias.dtype) for x in (key, value))
    logits = torch.matmul(q, k.transpose(2, 3)).mul_(scaling)
    shape = (query.shape[0], query.shape[1], rows.stop - rows.start, columns.stop)
    logits.view(shape).add_(_mask(bias, group, rows, columns, query.shape[2]))
    weights = logits.sub_(lse[..., None]).exp_()
    dv = torch.matmul(weights.transpose(2, 3), grad)
    slopes = torch.matmul(grad, v.transpose(2, 3)).sub_((grad * out).sum(dim=-1, keepdim=True)).mul_(weights)
    dq = torch.matmul(slopes, k).mul_(scaling).view(*shape[:3], -1)
    dk = torch.matmul(slopes.transpose(2, 3), q).mul_(scaling)
    return dq, dk, dv, _diagonals(slopes.view(shape).sum(dim=0))


def _grouped(x: Tensor, group: int) -> Tensor:
    return x.unflatten(1, (-1, group)).flatten(2, 3)


def _diagonals(x: Tensor) -> Tensor:
    """Sums over i + j of x (heads, rows, columns): rows that are one longer than they are read slide by one each."""
    heads, rows, columns = x.shape
    slid = torch.nn.functional.pad(x, (0, rows)).flatten(1)[:, : rows * (rows + columns - 1)]
    return slid.view(heads, rows, rows + columns - 1).sum(dim=1)
