"""The attention of one layer alone: ours, plain causal attention, and the form that holds whole matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pospatch.bench._cell import SHAPES, Cell
from pospatch.engine._state import Call, State
from pospatch.errors import BadOption
from pospatch.methods._base import Bands, Bias, Block, Contextual, SummedBias, SummedRotation

__all__ = ["has_reference", "layer_work"]

Work = Callable[[], object]
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def layer_work(cell: Cell) -> Work:
    """Attention over random q, k and v of the model's shape; in training the backward pass too."""
    module, state, rotary = _layer(cell)
    geometry = state.geometry
    torch.manual_seed(1)
    kind = getattr(torch, cell.dtype)

    def made(heads: int) -> Tensor:
        size = (cell.batch, cell.length, heads, geometry.head_dim)  # as projections give it
        return torch.randn(size, device=cell.device).to(kind).transpose(1, 2)

    q, k, v = made(geometry.heads), made(geometry.kv_heads), made(geometry.kv_heads)
    where = torch.arange(cell.length, device=cell.device)[None]
    hidden = torch.randn(cell.batch, cell.length, geometry.width, device=cell.device).to(kind)
    attention = {
        "ours": lambda: _ours(module, state, where, hidden),
        "plain": lambda: _plain(module, state if rotary else None, where),
        "reference": lambda: _reference(state, where, hidden),
    }[cell.form]()
    if cell.work == "train":
        leaves = [x.requires_grad_() for x in (q, k, v)]
        grad = torch.randn(cell.batch, cell.length, geometry.heads, geometry.head_dim, device=cell.device).to(kind)
        leaves += [x for x in state.parameters() if cell.form != "plain"]
        return lambda: torch.autograd.grad(attention(q, k, v), leaves, grad, allow_unused=True)

    @torch.no_grad()
    def forward() -> None:
        attention(q, k, v)

    return forward


def _layer(cell: Cell) -> tuple[Any, State, bool]:
    """An attention module, what is patched into it, and whether it is a rotary encoding that the method re-indexes."""
    import pospatch
    from pospatch.bench._build import make_model

    if cell.model not in SHAPES:
        raise BadOption(f"bench: level='attention' takes a named shape ({', '.join(SHAPES)}), got {cell.model!r}")
    model = make_model(cell.model, 1, cell.length, cell.dtype).to(cell.device)
    pospatch.apply(model, (cell.method or "nope").split("+"), **cell.options)
    found = [module for module in model.modules() if isinstance(module._modules.get("pospatch"), State)]
    if not found:
        raise BadOption(f"bench: {cell.method} acts outside the attention of {cell.model}; use level='model'")
    state: Any = found[0]._modules["pospatch"]
    return found[0], state, isinstance(state.score, Bands)


def _ours(module: Any, state: State, where: Tensor, hidden: Tensor) -> Attention:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    function = ALL_ATTENTION_FUNCTIONS["pospatch|sdpa"]

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        call = Call(state=state, positions=where, true=where, hidden=hidden)
        output: Tensor = function(module, q, k, v, None, dropout=0.0, scaling=q.shape[-1] ** -0.5, pospatch=call)[0]
        return output

    return attention


def _plain(module: Any, state: State | None, where: Tensor) -> Attention:
    """Causal attention of the library's kernel, after the native rotation where the method re-indexes one."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    function = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if state is not None:
            q, k = state.rotate(q, where, "query"), state.rotate(k, where, "key")
        output: Tensor = function(module, q, k, v, None, dropout=0.0, scaling=q.shape[-1] ** -0.5)[0]
        return output

    return attention


def has_reference(cell: Cell) -> bool:
    """False where the method's usual form is not one of whole matrices."""
    if cell.method is None:
        return False
    if cell.level == "model":
        return cell.work in ("prefill", "train")
    score = _layer(Cell(**{**vars(cell), "length": 16}))[1].score
    return score is not None and not isinstance(score, SummedRotation)


def _reference(state: State, where: Tensor, hidden: Tensor) -> Attention:
    """Each kind as its authors write it: the bias as a mask, a matrix of logits a range, or the method's logits of all pairs."""
    method, weights, geometry = state.score, state.weights_of("score"), state.geometry
    length = where.shape[1]

    def blocked() -> Tensor:
        return torch.ones(length, length, dtype=torch.bool, device=where.device).triu(1)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        scaling = q.shape[-1] ** -0.5
        if isinstance(method, Bias):
            bias = method.bias(where, where, weights, geometry).to(q.dtype).masked_fill(blocked(), float("-inf"))
            return scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scaling).transpose(1, 2)
        if isinstance(method, Bands):
            logits = _bands(state, method, q, k, where, scaling)
        else:
            logits = _contextual(state, q, k, where, hidden, scaling, ~blocked())
        weight = logits.float().masked_fill(blocked(), float("-inf")).softmax(dim=-1).to(v.dtype)
        return (weight @ v).transpose(1, 2)

    return attention


def _bands(state: State, method: Bands, q: Tensor, k: Tensor, where: Tensor, scaling: float) -> Tensor:
    logits = None
    for band in method.bands(state.geometry):
        turned = state.rotate(q, band.query(where), "query"), state.rotate(k, band.key(where), "key")
        part = turned[0] @ turned[1].transpose(2, 3) * (scaling * band.amplitude)
        distance = where[:, :, None] // band.unit - where[:, None] // band.unit
        logits = part if logits is None else torch.where((distance >= band.start)[:, None], part, logits)
    assert logits is not None  # a Bands method has at least one range
    return logits


def _contextual(
    state: State, q: Tensor, k: Tensor, where: Tensor, hidden: Tensor, scaling: float, allowed: Tensor
) -> Tensor:
    method, weights = state.score, state.weights_of("score")
    assert isinstance(method, Contextual)  # the only other kind at the score site
    held = state.state_of(hidden)
    scores = (q @ k.transpose(2, 3)).float() * scaling
    if isinstance(method, SummedBias):
        assert held is not None  # a summed bias always has a state
        sums = held[..., 0].cumsum(dim=2)
        return scores + sums[:, :, :, None] - sums[:, :, None]
    block = Block(
        query=q, key=k, scores=scores, query_positions=where, key_positions=where, allowed=allowed[None, None],
        query_state=held, key_state=held,
    )  # fmt: skip
    return method.logits(block, weights, state.geometry)
