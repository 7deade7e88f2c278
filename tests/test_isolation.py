"""A patch touches one model: not its twin, not its config's other owners, not other threads; and it leaves nothing behind."""

from __future__ import annotations

import copy
import gc
import io
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import pospatch
from pospatch.engine import _patch
from pospatch.engine._state import State
from pospatch.errors import AlreadyPatched, NotPatched, SeamChanged
from tests import cells, tiny
from tests.test_engine import assert_same, snapshot

PAIRS = [(host, method) for host in ("llama", "gpt2") for method in cells.kinds() if cells.fits(host, method)]
each_kind = pytest.mark.parametrize(("host", "method"), PAIRS)


@each_kind
def test_two_models_on_one_config(host: str, method: str) -> None:
    first = tiny.build(host)
    second = type(first)(first.config).eval()
    second.load_state_dict(first.state_dict())
    assert second.config is first.config
    tokens, config = tiny.ids(), first.config.to_dict()
    native = tiny.logits(second, tokens)
    cells.apply(first, host, method)
    assert second.config.to_dict() == config
    assert torch.equal(tiny.logits(second, tokens), native)
    second.set_attn_implementation("eager")
    assert first.config._attn_implementation == "sdpa"


@each_kind
def test_threads_on_one_model(host: str, method: str) -> None:
    model = cells.patched(host, method)
    batches = [tiny.ids(1, 10 + i, seed=i) for i in range(6)]
    with torch.no_grad():
        wanted = [tiny.logits(model, batch) for batch in batches]
        with ThreadPoolExecutor(4) as pool:
            for _ in range(3):
                found = list(pool.map(lambda batch: _without_grad(model, batch), batches))
                assert all(torch.equal(got, want) for got, want in zip(found, wanted, strict=True))


def test_a_copy_makes_its_own_frequencies() -> None:
    """Those of the original may be on a device that the copy is not on, or made in inference mode."""
    model, tokens = tiny.build("gpt2"), tiny.ids()
    with torch.inference_mode():
        wanted = tiny.logits(pospatch.apply(model, "rope"), tokens)
    held = io.BytesIO()
    torch.save(model, held)
    held.seek(0)
    for other in (copy.deepcopy(model), torch.load(held, weights_only=False)):
        states = [module for module in other.modules() if isinstance(module, State)]
        assert states
        assert not any(state.frequencies for state in states)
        assert torch.equal(tiny.logits(other, tokens), wanted)
        assert all(not x.is_inference() for state in states for x, _ in state.frequencies.values())


def _without_grad(model: Any, batch: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return tiny.logits(model, batch)


@each_kind
def test_a_failure_half_way_leaves_the_model_as_it_was(host: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny.build(host), tiny.ids()
    before, native = snapshot(model), tiny.logits(model, tokens)

    def fails(*args: Any) -> None:
        raise SeamChanged("not reached")

    monkeypatch.setattr(_patch, "prove", fails)
    with pytest.raises(SeamChanged):
        cells.apply(model, host, method)
    assert_same(snapshot(model), before)
    assert torch.equal(tiny.logits(model, tokens), native)


@each_kind
def test_a_failed_change_of_options_keeps_the_old_patch(
    host: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = pospatch.apply(tiny.build(host), "rope"), tiny.ids()
    wanted = tiny.logits(model, tokens)
    with pytest.raises((AlreadyPatched, NotImplementedError, ValueError)):
        pospatch.apply(model, "p_rope")
    real, calls = _patch.prove, []

    def fails_once(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise SeamChanged("not reached")
        real(*args)

    monkeypatch.setattr(_patch, "prove", fails_once)
    with pytest.raises(SeamChanged):
        pospatch.apply(model, "rope", rope_theta=777.0)
    assert pospatch.inspect(model).stack == [{"method": "rope"}]
    assert torch.equal(tiny.logits(model, tokens), wanted)


@each_kind
def test_applied_twice_and_removed_twice(host: str, method: str) -> None:
    model, tokens = cells.patched(host, method), tiny.ids()
    wanted, before = tiny.logits(model, tokens), snapshot(model)
    pospatch.apply(model, [(name, dict(options)) for name, options in cells.stack(host, method)])  # type: ignore[union-attr]
    assert_same(snapshot(model), before)
    assert torch.equal(tiny.logits(model, tokens), wanted)
    pospatch.remove(model)
    native = snapshot(model)
    with pytest.raises(NotPatched, match="no patch"):
        pospatch.remove(model)
    assert_same(snapshot(model), native)


def test_other_options_replace_and_never_compound() -> None:
    tokens = tiny.ids(1, 60)
    twice = pospatch.apply(pospatch.apply(tiny.build("llama"), "yarn", factor=2.0), "yarn", factor=4.0)
    once = pospatch.apply(tiny.build("llama"), "yarn", factor=4.0)
    assert torch.equal(tiny.logits(twice, tokens), tiny.logits(once, tokens))
    assert pospatch.inspect(twice).stack == [{"method": "yarn", "factor": 4.0}]
    assert twice.config.to_dict() == once.config.to_dict()
    pospatch.remove(twice)
    assert torch.equal(tiny.logits(twice, tokens), tiny.logits(tiny.build("llama"), tokens))


def test_training_survives_a_second_method_and_remove_keeps_the_hosts_weights() -> None:
    model = pospatch.apply(tiny.build("gpt2"), "t5_bias")
    cells.spice(model)
    learned = {name: value.clone() for name, value in model.named_parameters() if "pospatch" in name}
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.mul_(1.5)
    pospatch.apply(model, "logn")
    for name, value in learned.items():
        assert torch.equal(dict(model.named_parameters())[name], value), name
    pospatch.remove(model)
    assert torch.equal(
        model.transformer.h[0].mlp.c_fc.weight, tiny.build("gpt2").transformer.h[0].mlp.c_fc.weight * 1.5
    )


@each_kind
def test_a_dropped_model_is_freed(host: str, method: str) -> None:
    model = cells.patched(host, method)
    tiny.logits(model, tiny.ids())
    dead = weakref.ref(model)
    del model
    gc.collect()
    assert dead() is None


def test_two_hundred_times_on_and_off_leave_nothing() -> None:
    def states() -> int:
        gc.collect()
        return sum(isinstance(item, State) for item in gc.get_objects())

    model = tiny.build("gpt2")
    before, standing = snapshot(model), states()
    for _ in range(200):
        pospatch.apply(model, "alibi")
        pospatch.remove(model)
    assert_same(snapshot(model), before)
    assert states() == standing


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_remove_after_a_change_of_dtype_is_the_base_under_the_same_change(dtype: torch.dtype) -> None:
    for host, method in PAIRS:
        model = cells.patched(host, method).to(dtype)
        pospatch.remove(model)
        wanted = tiny.build(host).to(dtype)
        for name, value in wanted.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), (host, method, name)
        assert torch.equal(tiny.logits(model, tiny.ids()), tiny.logits(wanted, tiny.ids())), (host, method)


_IMPORT = """
import sys, time
begun = time.perf_counter()
import pospatch
assert "torch" not in sys.modules and "transformers" not in sys.modules
import transformers.modeling_utils as modeling
names = set(modeling.ALL_ATTENTION_FUNCTIONS.valid_keys())
assert not any(name.startswith("pospatch") for name in names), names
from transformers import LlamaConfig, LlamaForCausalLM
assert LlamaForCausalLM.save_pretrained is modeling.PreTrainedModel.save_pretrained
"""


def test_importing_changes_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
