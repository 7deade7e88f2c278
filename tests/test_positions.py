"""Tables and chosen positions inside whole models: read where they should be, drawn once a forward, undone to the bit."""

from __future__ import annotations

import copy
import importlib
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import StaticCache

import pospatch
from pospatch.errors import BadOption, PospatchError, UnsupportedHost
from pospatch.inspection import methods
from pospatch.methods._base import Embedding, Index
from pospatch.registry import method_class, names
from tests import tiny

_CLASSES = {name: method_class(name) for name in names()}
LEVELS = [name for name, cls in _CLASSES.items() if issubclass(cls, Index) and cls.two_levels]
INDICES = [name for name, cls in _CLASSES.items() if issubclass(cls, Index) and not cls.two_levels]
DRAWN = [name for name in INDICES if _CLASSES[name].training_only]
FIXED = [name for name in INDICES if name not in DRAWN]
TABLES = [name for name, cls in _CLASSES.items() if issubclass(cls, Embedding)]
READERS = [
    "llama",
    "gemma3",
    "gpt_neox",
    "gpt2",
    "opt",
    "bert",
    "roberta",
    "bart",
]  # a table or a rotary module to read
CAUSAL = ["llama", "gemma3", "gpt2", "opt"]
WITH_TABLE = ["gpt2", "opt", "bert", "roberta", "bart"]
N = tiny.LENGTH


def oracle(name: str) -> Any:
    return importlib.import_module(f"tests.oracles.{name}")


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * max(1.0, b.std().item()))


def stack_for(name: str, host: str, length: int = 96) -> list[Any]:
    """A drawn method on a host: where a table bounds the positions it is made longer first."""
    drawn = (name, {"length": length})
    return [("learned", {"length": length}), drawn] if host in WITH_TABLE else [drawn]


@pytest.fixture(autouse=True)
def _no_full_window() -> Any:
    """Windows that leave nothing to draw would make a test of drawing empty."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*fill the .* positions")
        yield


def snapshot(model: Any) -> Any:
    modules = [(name, type(module), module.training) for name, module in model.named_modules()]
    hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    grads = [parameter.requires_grad for parameter in model.parameters()]
    return modules, hooks, state, buffers, grads, model.config.to_dict()


def loud(model: Any) -> None:
    """Random values in the patch's learned tensors: biases start at zero, where no position shows."""
    generator = torch.Generator().manual_seed(11)
    for name, parameter in model.named_parameters():
        if ".pospatch." in name:
            parameter.data.normal_(0.0, 1.0, generator=generator)


def same(a: Any, b: Any) -> bool:
    tensors = all(list(a[i]) == list(b[i]) and all(torch.equal(a[i][k], b[i][k]) for k in a[i]) for i in (2, 3))
    return tensors and (a[0], a[1], a[4], a[5]) == (b[0], b[1], b[4], b[5])


# fixed positions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [host for host in READERS if host != "bart"])
@pytest.mark.parametrize("name", FIXED)
def test_positions_are_those_of_the_oracle(name: str, host: str) -> None:
    """A patched model equals the plain one that is handed the oracle's positions (with a mask, so that none means packing)."""
    length = 2 * N - 5
    model, tokens = tiny.build(host), tiny.ids(2, length)
    wanted = oracle(name).oracle(method_class(name)(), _geometry(), length)
    given = torch.tensor([wanted]) + (2 if host == "roberta" else 0)
    extra = {"token_type_ids": torch.zeros_like(tokens)} if host in ("bert", "roberta") else {}
    plain = tiny.logits(model, tokens, position_ids=given, attention_mask=torch.ones_like(tokens), **extra)
    pospatch.apply(model, name)
    assert torch.equal(tiny.logits(model, tokens, attention_mask=torch.ones_like(tokens)), plain)
    close(tiny.logits(model, tokens), plain)


def _geometry() -> Any:
    from pospatch.geometry import Geometry

    return Geometry(heads=4, head_dim=8, width=32, length=N)


@pytest.mark.parametrize("host", READERS)
@pytest.mark.parametrize("name", INDICES)
def test_undone_to_the_bit(name: str, host: str) -> None:
    model, tokens = tiny.build(host), tiny.ids(2, 20)
    before, plain = snapshot(model), tiny.logits(model, tokens)
    pospatch.apply(model, stack_for(name, host) if name in DRAWN else name)
    tiny.logits(model.train(), tokens).sum().backward()
    model.eval()
    assert pospatch.inspect(model).sites[0]["now"] == name
    model.zero_grad()
    pospatch.remove(model)
    assert same(before, snapshot(model))
    assert torch.equal(tiny.logits(model, tokens), plain)


@pytest.mark.parametrize("name", INDICES)
def test_refused_where_nothing_reads_positions(name: str) -> None:
    model, tokens = tiny.build("t5"), tiny.ids(1, 9)
    before = tiny.logits(model, tokens)
    with pytest.raises(UnsupportedHost, match="neither"):
        pospatch.apply(model, name)
    assert torch.equal(before, tiny.logits(model, tokens))
    gpt2 = tiny.build("gpt2")
    with pytest.raises(UnsupportedHost, match="takes their place"):
        pospatch.apply(gpt2, ["rope", "self_extend", name])
    with pytest.raises(BadOption, match="layers"):
        pospatch.apply(gpt2, name, layers=[0])


@pytest.mark.parametrize("host", CAUSAL)
@pytest.mark.parametrize("name", FIXED)
def test_decoding_equals_one_pass(name: str, host: str) -> None:
    """Beyond the trained length, token by token, in chunks, in a static cache, and beside left pads."""
    length = 2 * N - 5
    model, tokens = pospatch.apply(tiny.build(host), name), tiny.ids(2, length)
    whole = tiny.logits(model, tokens)
    for size in (1, 7):
        cache, parts = None, []
        for start in range(0, length, size):
            out = model(input_ids=tokens[:, start : start + size], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
        close(torch.cat(parts, dim=1), whole)
    cache = StaticCache(config=model.config, max_cache_len=length)
    parts = [model(input_ids=tokens[:, :40], past_key_values=cache, use_cache=True).logits]
    for n in range(40, length):
        parts.append(model(input_ids=tokens[:, n : n + 1], past_key_values=cache, use_cache=True).logits)
    close(torch.cat(parts, dim=1), whole)
    mask = torch.ones_like(tokens)
    mask[1, :9] = 0
    where = (mask.cumsum(dim=1) - 1).clamp(min=0)
    padded = tiny.logits(model, tokens, attention_mask=mask, position_ids=where)
    close(padded[1, 9:], tiny.logits(model, tokens[1:, 9:])[0])
    close(padded[0], whole[0])


@pytest.mark.parametrize("name", FIXED)
def test_generation_goes_beyond_the_trained_length(name: str) -> None:
    for host in ("gpt2", "llama", "bart"):
        model, prompt = pospatch.apply(tiny.build(host), name), tiny.ids(2, 12)
        kept = {"do_sample": False, "max_new_tokens": N, "min_new_tokens": N}
        with_cache = model.generate(prompt, num_beams=2, **kept)
        assert torch.equal(with_cache, model.generate(prompt, num_beams=2, use_cache=False, **kept))


# tables ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", WITH_TABLE)
@pytest.mark.parametrize("resize", ["grid", "tile"])
def test_short_inputs_equal_the_trained_model_to_the_bit(host: str, resize: str) -> None:
    model = tiny.build(host)
    inputs = [tiny.ids(2, length) for length in (1, 13, N)]
    plain = [tiny.logits(model, tokens) for tokens in inputs]
    pospatch.apply(model, "learned", factor=3, resize=resize)
    for tokens, wanted in zip(inputs, plain, strict=True):
        assert torch.equal(tiny.logits(model, tokens), wanted)
    assert tiny.logits(model, tiny.ids(1, 3 * N)).isfinite().all()
    if resize == "grid":
        assert not model.config.pospatch["native"]  # plain transformers would read other rows
        pospatch.apply(model, "learned", factor=3, resize=resize, short="plain")
        assert model.config.pospatch["native"]
        assert not torch.equal(tiny.logits(model, inputs[2]), plain[2])


@pytest.mark.parametrize("host", WITH_TABLE)
def test_long_and_short_in_one_batch_are_each_alone(host: str) -> None:
    model = pospatch.apply(tiny.build(host), "learned", factor=3, resize="grid")
    tokens = tiny.ids(2, 50)
    left = host in ("gpt2", "opt")
    mask = torch.ones_like(tokens)
    short = slice(50 - 11, 50) if left else slice(0, 11)
    mask[1] = 0
    mask[1, short] = 1
    pad = model.config.pad_token_id
    tokens = tokens.masked_fill(mask == 0, pad)
    kwargs = {"position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)} if left else {}
    if host == "bart":
        kwargs = {"decoder_input_ids": tokens, "decoder_attention_mask": mask}
    together = tiny.logits(model, tokens, attention_mask=mask, **kwargs)
    close(together[1, short], tiny.logits(model, tokens[1:, short])[0])
    close(together[0], tiny.logits(model, tokens[:1])[0])


def test_grid_decodes_while_short_and_while_long_and_refuses_to_cross() -> None:
    model = pospatch.apply(tiny.build("gpt2"), "learned", factor=3, resize="grid")
    tokens = tiny.ids(1, 60)
    for first, last in ((5, N), (N + 1, 60)):
        out = model(input_ids=tokens[:, :first], use_cache=True)
        parts = [out.logits]
        for n in range(first, last):
            out = model(input_ids=tokens[:, n : n + 1], past_key_values=out.past_key_values, use_cache=True)
            parts.append(out.logits)
        close(torch.cat(parts, dim=1), tiny.logits(model, tokens[:, :last]))
    out = model(input_ids=tokens[:, :N], use_cache=True)
    with pytest.raises(BadOption, match="short='plain'"):
        model(input_ids=tokens[:, N : N + 1], past_key_values=out.past_key_values, use_cache=True)


def test_grid_and_drawn_positions_say_how_they_could_stand_together() -> None:
    model = tiny.build("gpt2")
    with pytest.raises(UnsupportedHost, match="short='plain'"):
        pospatch.apply(model, [("learned", {"factor": 3, "resize": "grid"}), "pose"])
    pospatch.apply(model, [("learned", {"factor": 3, "resize": "grid", "short": "plain"}), "pose"])


@pytest.mark.parametrize("host", ["llama", "t5", *WITH_TABLE])
@pytest.mark.parametrize("learned_scale", [False, True])
def test_sinusoids_stay_and_their_scale_learns(host: str, learned_scale: bool) -> None:
    model, tokens = tiny.build(host), tiny.ids(2, 12)
    before = snapshot(model)
    pospatch.apply(model, "sinusoidal", learned_scale=learned_scale)
    tables = [value for n, value in model.state_dict(keep_vars=True).items() if _is_table(n)]
    assert tables
    assert not any(table.requires_grad for table in tables)
    scales = [p for n, p in model.named_parameters() if n.endswith("pospatch_table.scale")]
    assert len(scales) == (len(tables) if learned_scale else 0)
    tiny.logits(model, tokens).square().mean().backward()
    assert all(scale.grad.abs() > 0 for scale in scales)
    start = tiny.logits(model, tokens)
    with torch.no_grad():
        for scale in scales:
            scale.mul_(2.0)
    assert learned_scale != torch.equal(tiny.logits(model, tokens), start)
    model.zero_grad()
    pospatch.remove(model)
    assert same(before, snapshot(model))


def _table(model: Any) -> Tensor:
    return next(value for name, value in model.state_dict().items() if _is_table(name))


def _is_table(name: str) -> bool:
    ends = ("pospatch_table.weight", "wpe.weight", "embed_positions.weight", "position_embeddings.weight")
    return name.endswith(ends)


@pytest.mark.parametrize("host", ["gpt2", "roberta", "llama"])
@pytest.mark.parametrize("name", TABLES)
def test_other_options_start_anew(name: str, host: str) -> None:
    """Applied again with other options a method replaces itself; with the same ones it keeps what was trained."""
    model = tiny.build(host)
    fits = methods(model)[name]["fits"]
    if not fits:
        with pytest.raises(PospatchError, match=name):
            pospatch.apply(model, name)
        return
    pospatch.apply(model, name, length=2 * N)
    table = _table(model)
    table.add_(1.0)
    trained = table.clone()
    pospatch.apply(model, "logn")
    assert torch.equal(trained, _table(model))
    pospatch.apply(model, name, length=3 * N)
    again = _table(model)
    assert again.shape[0] == trained.shape[0] + N
    once = pospatch.apply(tiny.build(host), [(name, {"length": 3 * N}), "logn"])
    assert torch.equal(again, _table(once))


# drawn positions ------------------------------------------------------------------------------------------------------


def losses(model: Any, batches: list[Tensor], seed: int = 3) -> tuple[list[float], list[Tensor]]:
    """Losses and gradients of forwards that all come before the backwards."""
    torch.manual_seed(seed)
    model.train()
    model.zero_grad()
    out = [tiny.logits(model, tokens).square().mean() for tokens in batches]
    for loss in reversed(out):
        loss.backward()
    model.eval()
    return [loss.item() for loss in out], [p.grad.clone() for p in model.parameters() if p.grad is not None]


def equal(first: tuple[list[float], list[Tensor]], second: tuple[list[float], list[Tensor]]) -> None:
    """The same draws: losses and gradients agree to rounding."""
    assert first[0] == pytest.approx(second[0], rel=1e-6)
    for a, b in zip(first[1], second[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("host", READERS)
@pytest.mark.parametrize("name", DRAWN)
def test_evaluation_is_unchanged_and_training_draws(name: str, host: str) -> None:
    stack = stack_for(name, host)
    model, base = tiny.build(host), tiny.build(host)
    if len(stack) > 1:
        pospatch.apply(base, stack[:1])
    pospatch.apply(model, stack)
    tokens = tiny.ids(3, 20)
    plain = tiny.logits(base, tokens)
    state = torch.random.get_rng_state()
    assert torch.equal(tiny.logits(model, tokens), plain)
    assert torch.equal(state, torch.random.get_rng_state())
    first, again = losses(model, [tokens, tokens]), losses(model, [tokens, tokens])
    assert first[0] == again[0]
    assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))
    assert first[0][0] != first[0][1]  # a new draw for each forward
    assert torch.equal(tiny.logits(model, tokens), plain)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("host", READERS)
@pytest.mark.parametrize("name", DRAWN)
def test_checkpointing_repeats_the_draw(name: str, host: str, reentrant: bool) -> None:
    model = pospatch.apply(tiny.build(host), stack_for(name, host))
    batches = [tiny.ids(2, 20), tiny.ids(3, 11, seed=6)]
    plain = losses(model, batches)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    repeated = losses(model, batches)
    equal(plain, repeated)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", DRAWN)
def test_a_whole_model_may_be_checkpointed(name: str, reentrant: bool) -> None:
    """torch's checkpoint around the model repeats the forward with the generator as it was."""
    from torch.utils.checkpoint import checkpoint

    model = pospatch.apply(tiny.build("llama"), name, length=200).train()
    embeds = torch.randn(2, 20, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def loss(inputs: Tensor) -> Tensor:
        return model(inputs_embeds=inputs).logits.square().mean()

    gradients = []
    for run in (loss, lambda x: checkpoint(loss, x, use_reentrant=reentrant)):
        torch.manual_seed(0)
        embeds.grad = None
        first, second = run(embeds), run(embeds)
        assert first.item() != second.item()
        (first + 2 * second).backward()
        gradients.append(embeds.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", DRAWN)
def test_all_layer_types_get_the_same_positions(name: str) -> None:
    """Gemma 3 asks its rotary module once for each layer type; a model with equal types shows that the draws agree."""
    model = pospatch.apply(tiny.build("gemma3"), name, length=500).train()
    seen: list[Tensor] = []
    rotary = model.model.rotary_emb
    rotary.register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[1].clone()), with_kwargs=True)
    tiny.logits(model, tiny.ids(2, 20))
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])
    assert seen[0].shape == (2, 20)
    assert not torch.equal(seen[0][0], seen[0][1])


@pytest.mark.parametrize("name", DRAWN)
def test_beside_a_scaling_the_draw_reaches_what_it_reaches(name: str) -> None:
    model, base, tokens = tiny.build("llama"), tiny.build("llama"), tiny.ids(64, 20)
    pospatch.apply(base, "yarn", factor=4.0)
    pospatch.apply(model, ["yarn", name], factor=4.0)
    assert torch.equal(tiny.logits(model, tokens), tiny.logits(base, tokens))
    assert model.config.max_position_embeddings == base.config.max_position_embeddings == 4 * N
    assert model.config.pospatch["native"]
    seen: list[Tensor] = []
    hook = lambda module, args, kwargs: seen.append(kwargs["position_ids"])  # noqa: E731
    model.model.rotary_emb.register_forward_pre_hook(hook, with_kwargs=True)
    for _ in range(20):
        tiny.logits(model.train(), tokens)
    highest = torch.cat(seen).max().item()
    assert 4 * N - 6 <= highest < 4 * N


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawn_position_has_a_row(name: str) -> None:
    model = tiny.build("gpt2")
    with pytest.raises(BadOption, match="'learned'"):
        pospatch.apply(model, name, length=100)
    pospatch.apply(model, [("learned", {"length": 100}), name])  # reaches the new rows by itself
    seen: list[int] = []
    inner = torch.nn.functional.embedding

    def watched(ids: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if weight.shape[0] == 100:
            seen.append(int(ids.max()))
        return inner(ids, weight, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "embedding", watched)
        for _ in range(30):
            tiny.logits(model.train(), tiny.ids(8, 20))
    assert 90 <= max(seen) < 100


@pytest.mark.parametrize("name", DRAWN)
def test_a_cached_step_in_training_mode_is_refused(name: str) -> None:
    model, tokens = pospatch.apply(tiny.build("llama"), name, length=200), tiny.ids(1, 9)
    cache = model(input_ids=tokens, use_cache=True).past_key_values
    with pytest.raises(UnsupportedHost, match="eval"):
        model.train()(input_ids=tokens[:, :1], past_key_values=cache, use_cache=True)
    model.eval()(input_ids=tokens[:, :1], past_key_values=cache, use_cache=True)


# positions that our own methods read inside attention ------------------------------------------------------------------

STACKED = [
    ("gpt2", ["rope"]),
    ("gpt2", ["alibi"]),
    ("opt", ["t5_bias"]),
    ("bert", ["rope"]),
    ("roberta", ["t5_bias"]),
    ("t5", ["t5_bias"]),
    ("bart", ["alibi"]),
    ("llama", [("learned", {"length": 96})]),
    ("llama", [("learned", {"length": 96}), "alibi"]),
    ("gemma3", ["alibi"]),
]


@pytest.mark.parametrize(("host", "under"), STACKED)
@pytest.mark.parametrize("name", DRAWN)
def test_our_own_methods_read_drawn_positions(name: str, host: str, under: list[Any]) -> None:
    model, base, tokens = tiny.build(host), tiny.build(host), tiny.ids(2, 20)
    before, start = snapshot(model), tiny.logits(model, tokens)
    pospatch.apply(model, [*under, (name, {"length": 96})])
    pospatch.remove(model)
    assert same(before, snapshot(model))
    assert torch.equal(tiny.logits(model, tokens), start)
    pospatch.apply(base, under)
    pospatch.apply(model, [*under, (name, {"length": 96})])
    for patched in (base, model):
        loud(patched)
    assert torch.equal(tiny.logits(model, tokens), tiny.logits(base, tokens))
    batches = [tokens, tiny.ids(3, 11, seed=6)]
    plain, still = losses(model, batches), losses(base, batches)
    assert all(a != pytest.approx(b, rel=1e-5) for a, b in zip(plain[0], still[0], strict=True))
    assert plain[0] == losses(model, batches)[0]
    for reentrant in (True, False):
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        repeated = losses(model, batches)
        model.disable_input_require_grads()
        model.activation_checkpointing_disable()
        equal(plain, repeated)


@pytest.mark.parametrize("host", ["gpt2", "llama"])
@pytest.mark.parametrize("name", FIXED)
def test_our_own_methods_read_fixed_positions(name: str, host: str) -> None:
    """Rotated by ours at the oracle's positions, cached and at once; true positions still set the temperature."""
    length = 2 * N - 5
    wanted = torch.tensor([oracle(name).oracle(method_class(name)(), _geometry(), length)])
    model, base, tokens = tiny.build(host), tiny.build(host), tiny.ids(2, length)
    pospatch.apply(base, ["alibi"])
    mask = torch.ones_like(tokens)
    plain = tiny.logits(base, tokens, position_ids=wanted.expand(2, -1), attention_mask=mask)
    pospatch.apply(model, ["alibi", name])
    close(tiny.logits(model, tokens, attention_mask=mask), plain)
    cache, parts = None, []
    for start in range(0, length, 4):
        out = model(input_ids=tokens[:, start : start + 4], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
    close(torch.cat(parts, dim=1), plain)
    pospatch.apply(base, "logn")
    true = tiny.logits(base, tokens)
    assert not torch.equal(tiny.logits(pospatch.apply(model, "logn"), tokens), true)
    again = (
        pospatch.apply(tiny.build(host), ["alibi", "logn", (name, {"group_size": 1})]) if name == "grouped" else base
    )
    close(tiny.logits(again, tokens), true)


def test_a_checkpoint_wrapper_around_blocks_repeats_the_draw() -> None:
    """As FSDP does it: the block's own hooks run again with it."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper, checkpoint_wrapper

    batches = [tiny.ids(2, 20), tiny.ids(3, 11, seed=6)]
    for host, under in (("gpt2", ["alibi"]), ("llama", [("learned", {"length": 96}), "alibi"])):
        model = pospatch.apply(tiny.build(host), [*under, ("pose", {"length": 96})])
        plain = losses(model, batches)
        blocks = model.transformer.h if host == "gpt2" else model.model.layers
        for index, block in enumerate(blocks):
            blocks[index] = checkpoint_wrapper(block)
        assert isinstance(blocks[0], CheckpointWrapper)
        repeated = losses(model, batches)
        equal(plain, repeated)


# two levels -------------------------------------------------------------------------------------------------------------

DELIMITERS = [5, 9, 11, 20, 33, 47, 71, 90]
RELATIVE = ["rope", "alibi"]


def levels(host: str, relative: str, name: str, length: int = 12) -> Any:
    """A short table in which places of long segments end, or a host's own table where it has one."""
    table = "learned" if host in WITH_TABLE else ("learned", {"length": length})
    return pospatch.apply(tiny.build(host), [table, relative, (name, {"delimiters": DELIMITERS})])


@pytest.mark.parametrize("name", LEVELS)
def test_levels_are_read_where_each_belongs(name: str) -> None:
    """The plain llama with the table added by hand and rotated at the numbers of the segments."""
    from pospatch.registry import build

    model, tokens = levels("llama", "rope", name), tiny.ids(2, 50)
    model.model.layers[0].pospatch_table.weight.data.normal_(0.0, 1.0)
    method = build(name, delimiters=DELIMITERS)
    found = [oracle(name).oracle(method, _geometry().with_(length=12), row) for row in tokens.tolist()]
    places, numbers = (torch.tensor([item[i] for item in found]) for i in (0, 1))
    assert numbers.max() > 3
    assert places.max() >= 8
    got = tiny.logits(model, tokens)
    table = model.model.layers[0].pospatch_table.weight
    plain = pospatch.remove(copy.deepcopy(model))
    embeds = plain.get_input_embeddings()(tokens) + table[places]
    wanted = plain(inputs_embeds=embeds, position_ids=numbers, attention_mask=torch.ones_like(tokens)).logits
    close(got, wanted)
    assert (got - tiny.logits(plain, tokens)).abs().max() > 0.1


@pytest.mark.parametrize("host", ["llama", "gpt2", "opt", "bart"])
@pytest.mark.parametrize("relative", RELATIVE)
@pytest.mark.parametrize("name", LEVELS)
def test_levels_decode_as_one_pass(name: str, relative: str, host: str) -> None:
    model, tokens = levels(host, relative, name), tiny.ids(2, 30)
    kwargs = {"input_ids": tokens} if host == "bart" else {}
    ids = "decoder_input_ids" if host == "bart" else "input_ids"
    whole = model(**{**kwargs, ids: tokens}).logits
    for size in (1, 7):
        cache, parts = None, []
        for start in range(0, 30, size):
            part = tokens[:, start : start + size]
            out = model(**{**kwargs, ids: part}, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
        close(torch.cat(parts, dim=1), whole)
    if host == "bart":
        return
    with torch.no_grad():
        cache = model(input_ids=tokens, use_cache=True).past_key_values
        cache.crop(-12)  # as after rejected tokens of an assistant
        again = model(input_ids=tokens[:, 18:], past_key_values=copy.deepcopy(cache), use_cache=True).logits
        close(again, whole[:, 18:])
        twin = copy.deepcopy(cache)
        del cache
        twin.reorder_cache(torch.tensor([1, 0]))
        turned = model(input_ids=tokens[:, 18:].flip(0), past_key_values=twin, use_cache=True).logits
        close(turned, whole[:, 18:].flip(0))
    mask = torch.ones_like(tokens)
    mask[1, :9] = 0
    where = (mask.cumsum(dim=1) - 1).clamp(min=0)
    padded = tiny.logits(model, tokens, attention_mask=mask, position_ids=where)
    close(padded[1, 9:], tiny.logits(model, tokens[1:, 9:])[0])


@pytest.mark.parametrize("host", ["llama", "gpt2", "bart"])
@pytest.mark.parametrize("relative", RELATIVE)
@pytest.mark.parametrize("name", LEVELS)
def test_levels_follow_their_beams(name: str, relative: str, host: str) -> None:
    """Beams hold different tokens, so different segments; they are reordered at each step."""
    model, prompt = levels(host, relative, name), tiny.ids(3, 6)
    kept = {"do_sample": False, "max_new_tokens": 16, "min_new_tokens": 16, "num_beams": 4}
    with_cache = model.generate(prompt, **kept)
    assert torch.equal(with_cache, model.generate(prompt, use_cache=False, **kept))


@pytest.mark.parametrize("host", ["bert", "roberta", "bart", "gpt2", "llama"])
@pytest.mark.parametrize("relative", RELATIVE)
@pytest.mark.parametrize("name", LEVELS)
def test_levels_train_save_and_go(name: str, relative: str, host: str, tmp_path: Any) -> None:
    model, tokens = levels(host, relative, name), tiny.ids(2, 20)
    wanted = tiny.logits(model, tokens)
    batches = [tokens, tiny.ids(3, 11, seed=6)]
    plain = losses(model, batches)
    for reentrant in (True, False):
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        repeated = losses(model, batches)
        model.disable_input_require_grads()
        model.activation_checkpointing_disable()
        equal(plain, repeated)
    model.save_pretrained(tmp_path)
    loaded = pospatch.from_pretrained(type(model), tmp_path)
    assert torch.equal(tiny.logits(loaded, tokens), wanted)
    assert torch.equal(tiny.logits(copy.deepcopy(model), tokens), wanted)
    base = tiny.build(host)
    assert torch.equal(tiny.logits(pospatch.remove(loaded), tokens), tiny.logits(base, tokens))


@pytest.mark.parametrize("name", LEVELS)
def test_levels_refuse_what_they_cannot_know(name: str) -> None:
    options = {"delimiters": DELIMITERS}
    for host, under, lack in (("llama", [], "table"), ("gpt2", [], "bias"), ("t5", ["t5_bias"], "table")):
        with pytest.raises(UnsupportedHost, match=lack):
            pospatch.apply(tiny.build(host), [*under, (name, options)])
    model, tokens = levels("llama", "rope", name), tiny.ids(1, 9)
    with pytest.raises(UnsupportedHost, match="input_ids"):
        model(inputs_embeds=model.get_input_embeddings()(tokens))
    foreign = tiny.build("llama")(input_ids=tokens, use_cache=True).past_key_values
    with pytest.raises(UnsupportedHost, match="not filled"):
        model(input_ids=tokens, past_key_values=foreign, use_cache=True)
    tiny.logits(model, tokens)  # nothing of a failed call stays


def test_what_needs_no_forward_compiles_whole() -> None:
    """Positions that follow from positions, and drawn ones in evaluation, leave one graph."""
    tokens = tiny.ids(2, 20)
    for host, stack in (
        ("llama", ["grouped"]),
        ("gpt2", ["alibi", "recurrent"]),
        ("llama", [("yarn", {"factor": 4.0}), "pose"]),
        ("gpt2", [("sinusoidal", {"learned_scale": True})]),
        ("bert", [("learned", {"factor": 2, "resize": "grid"})]),
    ):
        torch._dynamo.reset()
        model = pospatch.apply(tiny.build(host), stack)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        with torch.no_grad():
            kwargs = {} if host == "bert" else {"use_cache": False}
            close(compiled(input_ids=tokens, **kwargs).logits, tiny.logits(model, tokens))


# both -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["gpt2", "roberta", "bart", "llama"])
@pytest.mark.parametrize("name", ["learned", *INDICES])
def test_saved_and_loaded(name: str, host: str, tmp_path: Any) -> None:
    """With the rows that a table had before, so that `remove` works after loading too."""
    options = {"factor": 3, "resize": "grid"} if name == "learned" and host in WITH_TABLE else {}
    stack = stack_for(name, host) if name in DRAWN else [(name, options)]
    model, tokens = tiny.build(host), tiny.ids(2, 2 * N - 8)
    short, plain = tokens[:, :20], tiny.logits(model, tokens[:, :20])
    pospatch.apply(model, stack)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    long = tokens if name not in DRAWN or host in WITH_TABLE else short
    if host == "llama" and name == "learned":
        long = short
    wanted = tiny.logits(model, long)
    model.save_pretrained(tmp_path)
    loaded = pospatch.from_pretrained(type(model), tmp_path)
    assert torch.equal(tiny.logits(loaded, long), wanted)
    if not model.config.pospatch["native"]:
        assert pospatch.inspect(loaded).stack == pospatch.inspect(model).stack
        for patched in (model, loaded):
            pospatch.remove(patched)
        assert torch.equal(tiny.logits(model, short), tiny.logits(loaded, short)) or options
        assert not torch.equal(tiny.logits(loaded, short), plain)  # the trained weights stay
    else:
        assert name in DRAWN


@pytest.mark.parametrize("host", ["gpt2", "bart"])
def test_a_reload_knows_the_old_rows(host: str, tmp_path: Any) -> None:
    model, tokens = tiny.build(host), tiny.ids(2, 20)
    plain = tiny.logits(model, tokens)
    pospatch.apply(model, [("learned", {"factor": 2}), "logn"])
    model.save_pretrained(tmp_path)
    assert torch.equal(tiny.logits(pospatch.remove(pospatch.from_pretrained(type(model), tmp_path)), tokens), plain)


@pytest.mark.parametrize("host", ["gpt2", "bert", "llama"])
@pytest.mark.parametrize("name", INDICES)
def test_copies_are_independent(name: str, host: str) -> None:
    model = pospatch.apply(tiny.build(host), stack_for(name, host) if name in DRAWN else name)
    tokens = tiny.ids(2, 20)
    twin = copy.deepcopy(model)
    wanted = losses(model, [tokens])[0]
    pospatch.remove(model)
    assert losses(twin, [tokens])[0] == wanted
    assert pospatch.inspect(twin).sites[0]["now"] == name


def test_threads_do_not_share_a_forward() -> None:
    """Documents of both kinds at once: what one thread knows of its pads must not reach another."""
    model = pospatch.apply(tiny.build("bert"), "learned", factor=3, resize="grid")
    batches = []
    for seed, real in enumerate((50, 10, 33, 20)):
        tokens, mask = tiny.ids(2, 50, seed=seed), torch.ones(2, 50, dtype=torch.long)
        mask[1, real:] = 0
        batches.append((tokens, mask))
    with torch.no_grad():
        wanted = [tiny.logits(model, tokens, attention_mask=mask) for tokens, mask in batches]
        wrong: list[int] = []

        def run(which: int) -> None:
            with torch.no_grad():
                for _ in range(15):
                    tokens, mask = batches[which]
                    if not torch.equal(tiny.logits(model, tokens, attention_mask=mask), wanted[which]):
                        wrong.append(which)

        threads = [threading.Thread(target=run, args=(which,)) for which in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize("host", ["bert", "roberta"])
@pytest.mark.parametrize(
    ("name", "options", "times"),
    [("grouped", {"group_size": 2}, 2), ("recurrent", {"factor": 2}, 2), ("randomized", {"length": 16}, 1)],
)
@torch.no_grad()
def test_a_host_with_index_buffers_reads_all_that_is_promised(
    host: str, name: str, options: dict[str, Any], times: int
) -> None:
    """Some tables begin after rows of their own, and a draw of few positions takes none away from evaluation."""
    model = tiny.build(host)
    length = pospatch.inspect(model).trained_length
    pospatch.apply(model, name, **options)
    tokens = tiny.ids(1, times * length)
    assert tiny.logits(model, tokens).shape[1] == times * length
