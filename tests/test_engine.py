"""The battery: every method on every tiny host attaches exactly, computes the same however it is called, and is undone exactly.

The default run takes every method on the three reference hosts and one method of each kind on all others; `-m slow` takes all.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import pospatch
from pospatch import registry
from pospatch.errors import PospatchError
from tests import cells, tiny

TOLERANCE = 1e-5  # of the largest logit
_SAMPLE = set(cells.cells(everything=False))
_ALL = cells.cells(everything=True)


def _cases(pairs: list[tuple[str, str]]) -> list[Any]:
    return [
        pytest.param(host, method, id=f"{host}-{method}", marks=() if (host, method) in _SAMPLE else pytest.mark.slow)
        for host, method in pairs
    ]


FITTING = [pair for pair in _ALL if cells.fits(*pair)]
REFUSED = [pair for pair in _ALL if not cells.fits(*pair)]
CAUSAL = [(host, method) for host, method in FITTING if host in tiny.CAUSAL]
EXACT = [(host, method) for host, method in FITTING if registry.method_class(method).exact_decode]
DECODING = [(host, method) for host, method in EXACT if host in (*tiny.CAUSAL, *tiny.SEQ2SEQ)]
every_pair = pytest.mark.parametrize(("host", "method"), _cases(FITTING))


def close(got: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> None:
    """Equal to a share of the spread of what is wanted."""
    gap, scale = (got - wanted).abs().max().item(), wanted.abs().max().item()
    assert gap <= tolerance * scale, f"differs by {gap:.2e}, {gap / scale:.1e} of the largest logit {scale:.2e}"


def snapshot(model: Any) -> dict[str, Any]:
    """All that `remove` promises to bring back, but for outputs."""
    hooks = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_state_dict_hooks",
        "_load_state_dict_pre_hooks",
    )
    return {
        "keys": list(model.state_dict()),
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "buffers": {name: value.clone() for name, value in model.named_buffers()},
        "identities": {name: id(value) for name, value in model.named_parameters()},
        "grad": {name: value.requires_grad for name, value in model.named_parameters()},
        "classes": {name: type(module) for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "hooks": {name: [len(vars(module)[hook]) for hook in hooks] for name, module in model.named_modules()},
        "config": model.config.to_dict(),
        "config classes": {name: type(m.config) for name, m in model.named_modules() if hasattr(m, "config")},
        "modes": {name: module.training for name, module in model.named_modules()},
    }


def assert_same(now: dict[str, Any], before: dict[str, Any]) -> None:
    """Two snapshots agree to the bit."""
    for part, value in before.items():
        if part in ("values", "buffers"):
            assert list(now[part]) == list(value)
            for name, tensor in value.items():
                assert torch.equal(now[part][name], tensor), name
        else:
            assert now[part] == value, part


# --- attached and undone ------------------------------------------------------------------------------------------------


@every_pair
def test_it_acts_and_remove_restores_everything(host: str, method: str) -> None:
    model, tokens = tiny.build(host), tiny.ids(2, 24)
    before, native = snapshot(model), tiny.logits(model, tokens)
    assert cells.apply(model, host, method) is model
    if not _waits(host, method):
        differs = (tiny.logits(model, tokens) - native).abs().max() > 1e-3 * native.std()
        assert differs or (_reads(model, 48) and not _reads(tiny.build(host), 48))
    pospatch.remove(model)
    assert_same(snapshot(model), before)
    assert torch.equal(tiny.logits(model, tokens), native)


def _waits(host: str, method: str) -> bool:
    """True for what leaves evaluation, or lengths up to the trained one, as they are."""
    example: Any = registry.build(method, **dict(cells.stack(host, method)[-1][1]))  # type: ignore[arg-type]
    return getattr(example, "dynamic", False) or getattr(example, "training_only", False)


def _reads(model: Any, length: int) -> bool:
    try:
        return bool(tiny.logits(model, tiny.ids(1, length)).isfinite().all())
    except (IndexError, RuntimeError):
        return False


@pytest.mark.parametrize(("host", "method"), _cases(REFUSED))
def test_a_pair_that_cannot_work_raises_and_leaves_the_model_as_it_was(host: str, method: str) -> None:
    model = tiny.build(host)
    before = snapshot(model)
    reason = cells.stack(host, method)
    options = {**tiny.options(method, model), **cells.battery(method)}
    with pytest.raises(PospatchError) as caught:
        pospatch.apply(model, method, **options)
    assert str(caught.value) == reason
    assert isinstance(caught.value, ValueError | TypeError | NotImplementedError)
    assert_same(snapshot(model), before)


@every_pair
def test_a_copy_is_independent(host: str, method: str) -> None:
    model, tokens = cells.patched(host, method), tiny.ids(1, 20)
    wanted = tiny.logits(model, tokens)
    twin, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    cells.spice(model, seed=21)
    pospatch.remove(model)
    for other in (twin, pickled):
        assert torch.equal(tiny.logits(other, tokens), wanted)
        pospatch.remove(other)
        assert torch.equal(tiny.logits(other, tokens), tiny.logits(tiny.build(host), tokens))


@pytest.mark.parametrize(("host", "method"), _cases([pair for pair in FITTING if pair[0] in cells.REFERENCE]))
def test_a_method_on_some_layers_acts_there_alone_or_is_refused(host: str, method: str) -> None:
    """What is said of all layers holds of one: other logits than all and than none, decode = prefill, undone to the bit."""
    model, tokens = tiny.build(host), tiny.ids(2, 24)
    before, native = snapshot(model), tiny.logits(model, tokens)
    *bed, (_, options) = ((name, dict(given)) for name, given in cells.stack(host, method))  # type: ignore[misc]
    if bed:
        pospatch.apply(model, bed)
        native = tiny.logits(model, tokens)
    chosen = {**options, "layers": [0]}
    try:
        pospatch.apply(model, method, **chosen)
    except PospatchError:
        with pytest.raises(PospatchError, match="layer"):
            pospatch.apply(model, method, **chosen)
        assert torch.equal(tiny.logits(model, tokens), native)
        return
    cells.spice(model)
    part, whole = tiny.logits(model, tokens), tiny.logits(cells.patched(host, method), tokens)
    if not _waits(host, method):
        assert (part - native).abs().max() > 1e-4 * native.std()
        assert (part - whole).abs().max() > 1e-4 * native.std()
    if host in tiny.CAUSAL and (host, method) in EXACT:
        close(_in_pieces(model, tokens, [5, 1, 18]), part)
    pospatch.remove(model)
    assert_same(snapshot(model), before)


# --- the same however it is called --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "method"), _cases(DECODING))
def test_prefill_is_decode_is_chunks(host: str, method: str) -> None:
    model, tokens = cells.patched(host, method), tiny.ids(2, 26)
    wanted = tiny.logits(model, tokens)
    for sizes in ([1] * 26, [3, 7, 1, 1, 11, 3]):
        close(_in_pieces(model, tokens, sizes), wanted)


def _in_pieces(model: Any, tokens: Tensor, sizes: list[int]) -> Tensor:
    """Logits of the same tokens, fed piece by piece through a cache."""
    found: list[Tensor] = []
    cache: Any = None
    encoded: Any = None
    for piece in tokens.split(sizes, dim=1):
        if model.config.is_encoder_decoder:
            encoded = encoded or model.get_encoder()(input_ids=tokens, return_dict=True)
            output = model(encoder_outputs=encoded, decoder_input_ids=piece, past_key_values=cache, use_cache=True)
        else:
            output = model(input_ids=piece, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        found.append(output.logits)
    return torch.cat(found, dim=1)


@every_pair
def test_no_call_depends_on_the_calls_before_it(host: str, method: str) -> None:
    model = cells.patched(host, method)
    short, other = tiny.ids(1, 12), tiny.ids(3, 30, seed=8)
    wanted = tiny.logits(model, short)
    tiny.logits(model, other)
    assert torch.equal(tiny.logits(model, short), wanted)


@pytest.mark.parametrize(("host", "method"), _cases([pair for pair in FITTING if pair not in EXACT and pair in CAUSAL]))
def test_length_dependent_frequencies_do_not_remember(host: str, method: str) -> None:
    """Beyond the trained length cached decoding cannot equal one pass; within it, it does, whatever was read before."""
    model, tokens = cells.patched(host, method), tiny.ids(1, 30)
    wanted = tiny.logits(model, tokens)
    tiny.logits(model, tiny.ids(1, 60))
    close(_in_pieces(model, tokens, [7, 1, 20, 2]), wanted)
    assert torch.equal(tiny.logits(model, tokens), wanted)


@every_pair
def test_padding_is_invisible(host: str, method: str) -> None:
    model = cells.patched(host, method)
    rows = [tiny.ids(1, 24, seed=1), tiny.ids(1, 17, seed=2)]
    alone = [tiny.logits(model, row)[0] for row in rows]
    sides = ["left", "right"] if host not in tiny.SEQ2SEQ else ["right"]
    for side in sides:
        tokens, mask = _pad(model, rows, side)
        got = _masked(model, tokens, mask)
        for row, wanted, keep in zip(got, alone, mask.bool(), strict=True):
            if model.config.is_encoder_decoder:
                close(row[: wanted.shape[0]], wanted)
            else:
                close(row[keep], wanted)


def _pad(model: Any, rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    longest = max(row.shape[1] for row in rows)
    pad, tokens, mask = model.config.pad_token_id, [], []
    for row in rows:
        room = longest - row.shape[1]
        empty = torch.full((1, room), pad)
        seen, blank = torch.ones_like(row), torch.zeros_like(empty)
        tokens.append(torch.cat((empty, row) if side == "left" else (row, empty), dim=1))
        mask.append(torch.cat((blank, seen) if side == "left" else (seen, blank), dim=1))
    return torch.cat(tokens), torch.cat(mask)


def _masked(model: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    """One forward of a padded batch, with the positions that `generate` or the family itself would count."""
    if model.config.is_encoder_decoder:
        return tiny.logits(model, tokens, attention_mask=mask, decoder_attention_mask=mask)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    if model.config.model_type == "roberta":  # counts from padding_idx + 1 and skips pads by itself
        return tiny.logits(model, tokens, attention_mask=mask)
    return tiny.logits(model, tokens, attention_mask=mask, position_ids=positions)


# --- training -----------------------------------------------------------------------------------------------------------


@every_pair
def test_gradients_with_checkpointing_and_two_forwards_before_two_backwards(host: str, method: str) -> None:
    batches = [tiny.ids(2, 22, seed=3), tiny.ids(2, 15, seed=4)]
    wanted = _gradients(cells.patched(host, method), batches, together=False)
    assert any(name for name in wanted if "pospatch" in name) == bool(_learned(host, method))
    for reentrant in (None, True, False):
        model = cells.patched(host, method)
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        got = _gradients(model, batches, together=True)
        assert set(got) == set(wanted)
        for name, value in wanted.items():
            assert (got[name] - value).abs().max() <= 1e-4 * value.abs().max() + 1e-7, (name, reentrant)


def _learned(host: str, method: str) -> list[str]:
    return pospatch.inspect(cells.patched(host, method)).weights


def _gradients(model: Any, batches: list[Tensor], together: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model.train()
    losses = []
    for tokens in batches:
        loss = torch.nn.functional.cross_entropy(tiny.logits(model, tokens).flatten(0, 1), tokens.flatten())
        if together:
            losses.append(loss)
        else:
            loss.backward()
    for loss in losses:
        loss.backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


SCORED = [pair for pair in FITTING if registry.method_class(pair[1]).slot == "score"]


@pytest.mark.parametrize(("host", "method"), _cases(SCORED))
def test_the_attentions_that_are_returned_are_those_that_act(host: str, method: str) -> None:
    """Attributions multiply them by their gradients, which a copy beside the output would not have."""
    model = cells.patched(host, method, attention="eager")
    tokens = tiny.ids()
    extra = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    output = model(input_ids=tokens, output_attentions=True, **extra)
    attentions = output.encoder_attentions if extra else output.attentions
    assert len(attentions) == 2
    for weights in attentions:
        weights.retain_grad()
    output.logits.square().sum().backward()
    for weights in attentions:
        assert weights.grad is not None
        assert weights.grad.abs().max() > 0


@pytest.mark.parametrize("method", [method for method in cells.kinds() if cells.fits("llama", method)])
@torch.no_grad()
def test_faint_weights_show_the_same_rotation(method: str) -> None:
    """What a layer does with positions does not depend on how loud its weights are."""
    model = tiny.build("llama")
    for value in model.parameters():
        if value.dim() > 1:
            value.mul_(1e-9)
    cells.apply(model, "llama", method)
    patched = vars(model)["_pospatch"]
    loud = vars(cells.patched("llama", method))["_pospatch"]
    assert [g.rotation is None for g in patched.layers.values()] == [g.rotation is None for g in loud.layers.values()]
