"""Steps of methods that re-index by ranges: keys cached in the last range's form, read in slices, equal one eager forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pospatch
from pospatch.attention import blockwise as blockwise_module
from pospatch.engine import _banded, _reindex
from pospatch.methods._base import Bands
from pospatch.registry import method_class, names
from tests import tiny

BANDS = [name for name in names() if issubclass(method_class(name), Bands)]
SLICED = [name for name in BANDS if method_class(name).visible is Bands.visible]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call of a single query was made of slices."""
    made, inner = [], _banded.step

    def step(query: Tensor, *args: Any) -> Any:
        output = inner(query, *args)
        if query.shape[2] == 1:
            made.append(output is not None)
        return output

    monkeypatch.setattr(_banded, "step", step)
    return made


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What each call got from the kernel: its output, or None."""
    made, inner = [], _banded.flash
    monkeypatch.setattr(_banded, "flash", lambda *args: made.append(inner(*args)) or made[-1])
    monkeypatch.setattr(_banded, "LEAST_PADDED", 1)
    return made


def decoded(model: Any, tokens: Tensor, first: int, **padding: Any) -> Tensor:
    """Logits of one forward over `first` tokens and single steps from there."""
    found, cache = [], None
    for start, stop in [(0, first), *((i, i + 1) for i in range(first, tokens.shape[1]))]:
        given = {name: value[:, :stop] for name, value in padding.items()}
        output = model(input_ids=tokens[:, start:stop], past_key_values=cache, use_cache=True, **given)
        found.append(output.logits)
        cache = output.past_key_values
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("host", ["llama", "cohere", "gpt_neox"])
@pytest.mark.parametrize("name", BANDS)
@torch.no_grad()
def test_steps_equal_one_eager_forward(steps: list[bool], host: str, name: str) -> None:
    tokens = tiny.ids(2, 45)
    wanted = tiny.logits(pospatch.apply(tiny.build(host, attention="eager"), name), tokens)
    model = pospatch.apply(tiny.build(host), name)
    got = decoded(model, tokens, 9)
    assert (got - wanted).abs().max() < 3e-5 * max(1.0, float(wanted.std()))
    assert steps
    assert all(steps) == (name in SLICED)


@pytest.mark.parametrize("name", SLICED)
@torch.no_grad()
def test_steps_of_padded_rows(steps: list[bool], name: str) -> None:
    """Pads stand before the tokens, so ranges of distance are the same slices for all rows; chunks are not."""
    model = pospatch.apply(tiny.build("llama"), name)
    tokens = tiny.ids(2, 45)
    mask = torch.ones_like(tokens)
    mask[0, :6] = 0
    where = (mask.cumsum(dim=1) - 1).clamp(min=0)
    model.set_attn_implementation("eager")
    wanted = tiny.logits(model, tokens, attention_mask=mask, position_ids=where)[mask.bool()]
    model.set_attn_implementation("sdpa")
    found, cache = [], None
    for start, stop in [(0, 9), *((i, i + 1) for i in range(9, 45))]:
        output = model(
            input_ids=tokens[:, start:stop], attention_mask=mask[:, :stop], position_ids=where[:, start:stop],
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
        found.append(output.logits)
        cache = output.past_key_values
    got = torch.cat(found, dim=1)[mask.bool()]
    assert (got - wanted).abs().max() < 3e-5 * max(1.0, float(wanted.std()))
    chunked = any(band.unit > 1 for band in model.model.layers[0].self_attn.pospatch.score.bands(
        model.model.layers[0].self_attn.pospatch.geometry))  # fmt: skip
    assert any(steps) != chunked


@pytest.mark.parametrize("name", SLICED)
@torch.no_grad()
def test_chunks_after_a_cache_are_calls_of_the_kernel(kernel: list[Any], name: str) -> None:
    model, tokens = pospatch.apply(tiny.build("llama"), name), tiny.ids(2, 61)
    wanted, found, cache = tiny.logits(model, tokens), [], None
    kernel.clear()
    for piece in tokens.split([17, 30, 14], dim=1):
        output = model(input_ids=piece, past_key_values=cache, use_cache=True)
        found.append(output.logits)
        cache = output.past_key_values
    assert (torch.cat(found, dim=1) - wanted).abs().max() < 3e-5 * max(1.0, float(wanted.std()))
    assert len(kernel) == 6
    assert all(torch.is_tensor(output) for output in kernel)


def eager_and_sdpa(host: str, stack: Any, ids: Tensor, **mask: Tensor) -> tuple[Any, bool]:
    """Logits and gradients of both; whether a range of the method is counted in blocks of tokens. Pads before the tokens see
    nothing, and are not compared."""
    found, given = [], mask.get("attention_mask", torch.ones_like(ids))
    real = given.cumsum(dim=1) > 0
    for attention in ("eager", "sdpa"):
        model = pospatch.apply(tiny.build(host, attention=attention), stack).eval()
        logits = tiny.logits(model, ids, **mask)[real]
        logits.square().mean().backward()
        grads = {path: each.grad for path, each in model.named_parameters() if each.grad is not None}
        found.append((logits.detach(), grads))
    layer = next(each for each in model.modules() if hasattr(each, "pospatch")).pospatch
    return found, any(band.unit > 1 for band in layer.score.bands(layer.geometry))


def assert_equal(found: Any) -> None:
    (wanted, gradients), (got, ours) = found
    assert (got - wanted).abs().max() < 3e-5 * max(1.0, float(wanted.std()))
    assert ours.keys() == gradients.keys()
    for path, gradient in gradients.items():
        assert (ours[path] - gradient).abs().max() <= 1e-4 * max(1e-3, float(gradient.abs().max())), path


@pytest.mark.parametrize("length", [3, 29, 61])
@pytest.mark.parametrize("name", SLICED)
def test_two_sided_attention_is_calls_of_the_kernel(kernel: list[Any], name: str, length: int) -> None:
    """Keys after their query are the causal case read from the other end; blocks of tokens would begin elsewhere there."""
    found, chunked = eager_and_sdpa("bert", ["rope", name], tiny.ids(2, length))
    assert_equal(found)
    assert kernel
    assert all(torch.is_tensor(output) != chunked for output in kernel)


@pytest.mark.parametrize(("host", "left"), [("llama", True), ("llama", False), ("bert", False)])
@pytest.mark.parametrize("name", SLICED)
def test_rows_with_pads_are_calls_of_their_own(kernel: list[Any], name: str, host: str, left: bool) -> None:
    ids = tiny.ids(4, 53)
    mask = torch.ones_like(ids)
    for row, pads in enumerate((0, 11, 11, 52)):
        mask[row, slice(pads) if left else slice(53 - pads, None)] = 0
    given = {"attention_mask": mask}
    if left:
        given["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
    found, chunked = eager_and_sdpa(host, ["rope", name] if host == "bert" else name, ids, **given)
    assert_equal(found)
    assert kernel
    assert all(torch.is_tensor(output) != (chunked and host == "bert") for output in kernel)


@pytest.mark.parametrize("where", ["twice from 0", "every second"])
@pytest.mark.parametrize("name", SLICED)
@torch.no_grad()
def test_one_mask_for_rows_at_other_positions(kernel: list[Any], name: str, where: str) -> None:
    """What is consecutive in the first row need not be in the others."""
    ids, first = tiny.ids(2, 40), torch.arange(40)
    other = torch.cat((first[:20], first[:20])) if where == "twice from 0" else 2 * first
    mask = torch.ones(1, 1, 40, 40, dtype=torch.bool).tril()
    found = []
    for rows in (1, 2):
        model = pospatch.apply(tiny.build("llama"), name)
        given = {"attention_mask": mask.expand(rows, -1, -1, -1), "position_ids": torch.stack((first, other))}
        kernel.clear()  # the patch has proved itself by it
        found.append(tiny.logits(model, ids, **given))
        assert kernel == [None, None]
    assert (found[0] - found[1]).abs().max() < 3e-5 * float(found[1].std())


@pytest.mark.parametrize("form", ["blocks of logits", "rows"])
@pytest.mark.parametrize("name", BANDS)
def test_a_padded_batch_in_training_keeps_no_matrix(monkeypatch: pytest.MonkeyPatch, name: str, form: str) -> None:
    """Blocks of logits are made again in the backward pass: twice the tokens keep twice the memory, and gradients are those
    of graphs that are kept."""
    model = pospatch.apply(tiny.build("llama"), name).train()

    def trained(length: int, kept_scores: int, least: int) -> tuple[int, dict[str, Tensor]]:
        monkeypatch.setattr(blockwise_module, "KEPT_SCORES", kept_scores)
        monkeypatch.setattr(_banded, "LEAST_PADDED", least)
        mask, kept = torch.ones(2, length, dtype=torch.long), {}
        mask[0, slice(5) if form == "blocks of logits" else slice(-length // 4, None)] = 0

        def keep(x: Tensor) -> Tensor:
            kept[x.data_ptr()] = x.nbytes
            return x

        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = model(tiny.ids(2, length), attention_mask=mask).logits[mask.bool()].square().mean()
        loss.backward()
        return sum(kept.values()), {
            path: each.grad.clone() for path, each in model.named_parameters() if each.grad is not None
        }

    least = 1 if form == "rows" else 2**30
    half, whole, graphs = trained(48, 1, least), trained(96, 1, least), trained(96, 2**30, 2**30)
    assert whole[0] < 2.2 * half[0]
    assert graphs[0] > 2 * whole[0]
    for path, wanted in graphs[1].items():
        assert (whole[1][path] - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max())), path


@pytest.mark.parametrize("name", SLICED)
@torch.no_grad()
def test_a_cache_that_was_cut_back_goes_on(steps: list[bool], name: str) -> None:
    model, tokens = pospatch.apply(tiny.build("llama"), name), tiny.ids(1, 44)
    other = tiny.ids(1, 60)[:, 44:50]
    output = model(input_ids=tokens, use_cache=True)
    for piece in other.split(1, dim=1):
        output = model(input_ids=piece, past_key_values=output.past_key_values)
    output.past_key_values.crop(-10)
    again = model(input_ids=tokens[:, 40:41], past_key_values=output.past_key_values).logits
    assert (again[:, -1] - tiny.logits(model, tokens[:, :41])[:, -1]).abs().max() < 3e-5 * max(1.0, float(again.std()))
    assert all(steps)


@torch.no_grad()
def test_only_keys_of_the_window_are_turned_at_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    turned: list[int] = []
    inner = _reindex.apply_rotation
    monkeypatch.setattr(_reindex, "apply_rotation", lambda x, *rest: turned.append(x.shape[2]) or inner(x, *rest))
    model, tokens = pospatch.apply(tiny.build("llama"), "rerope", window=5), tiny.ids(1, 41)
    cache = model(input_ids=tokens[:, :40], use_cache=True).past_key_values
    turned.clear()
    model(input_ids=tokens[:, 40:], past_key_values=cache)
    assert turned == [5, 5]  # one in each of two layers


@pytest.mark.parametrize(("stack", "options"), [(["rope", "self_extend"], {}), (["yarn", "rerope"], {"factor": 2.0})])
@torch.no_grad()
def test_a_rotation_put_there_first_is_re_indexed(stack: list[str], options: dict[str, Any]) -> None:
    """YaRN's amplitude stays on keys that are turned on."""
    model, tokens = pospatch.apply(tiny.build("llama"), stack, **options), tiny.ids(1, 41)
    assert _reindex.stored_form(model.model.layers[0].self_attn.pospatch) is not None
    wanted = tiny.logits(model, tokens)
    assert (decoded(model, tokens, 30) - wanted).abs().max() < 3e-5 * max(1.0, float(wanted.std()))
