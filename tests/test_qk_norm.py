"""QK norm: against its oracle and against Qwen3, which has one natively; what it stands beside, and what it is kept in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

import pospatch
from pospatch.errors import AlreadyPatched
from pospatch.geometry import Geometry
from pospatch.methods._math import turn
from pospatch.registry import build
from tests import tiny
from tests.oracles import qk_norm as oracle

TOKENS = tiny.ids(batch=2, length=24)


@pytest.mark.parametrize("options", oracle.VARIANTS, ids=str)
@pytest.mark.parametrize("side", ["query", "key"])
def test_it_is_what_its_oracle_says(options: dict[str, Any], side: str) -> None:
    where, method = Geometry(heads=6, kv_heads=2, head_dim=10, width=60, length=32), build("qk_norm", **options)
    weights = method.weights(where)
    assert all(torch.equal(gain, torch.full_like(gain, options.get("gain", 1.0))) for gain in weights.values())
    weights = {name: gain * torch.linspace(0.5, 1.5, len(gain)) for name, gain in weights.items()}
    x = torch.randn(1, len(weights[side]), 5, 10, generator=torch.Generator().manual_seed(0))
    wanted = torch.tensor(oracle.oracle(method, x[0], weights[side]))
    torch.testing.assert_close(method.normed(x, side, weights)[0], wanted)


@pytest.mark.parametrize("over", ["head", "all"])
def test_it_may_come_before_a_rotation_or_after_it(over: str) -> None:
    where, method = Geometry(heads=4, kv_heads=4, head_dim=8, width=32, length=32), build("qk_norm", over=over)
    x, angles = torch.randn(1, 4, 5, 8, generator=torch.Generator().manual_seed(0)), torch.arange(20.0).view(5, 4)
    weights = {"query": torch.linspace(0.5, 1.5, 4), "key": method.weights(where)["key"]}
    after = method.normed(turn(x, angles), "query", weights)
    torch.testing.assert_close(after, turn(method.normed(x, "query", weights), angles))


def test_with_equal_gains_it_is_the_norm_that_qwen3_has() -> None:
    """Its norm comes before the rotation, ours after: the same."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 300,
    }
    native = Qwen3ForCausalLM(Qwen3Config(**sizes, num_key_value_heads=2, head_dim=8)).eval()
    bare = Qwen3ForCausalLM(native.config).eval()
    bare.load_state_dict(native.state_dict())
    for ours, theirs in zip(bare.model.layers, native.model.layers, strict=True):
        theirs.self_attn.q_norm.weight.data.fill_(1.7)
        theirs.self_attn.k_norm.weight.data.fill_(1.7)
        ours.self_attn.q_norm = ours.self_attn.k_norm = torch.nn.Identity()
    assert (bare(TOKENS).logits - native(TOKENS).logits).abs().max() > 1e-3
    pospatch.apply(bare, "qk_norm", gain=1.7)
    torch.testing.assert_close(bare(TOKENS).logits, native(TOKENS).logits)


def loud(model: Any) -> Any:
    """Gains that differ from head to head."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name in pospatch.inspect(model).weights:
                value.mul_(torch.linspace(0.5, 1.5, len(value)))
    return model


@pytest.mark.parametrize("stack", [["nope", "qk_norm"], ["nope", "logn", "qk_norm"], ["qk_norm"]], ids=" + ".join)
@pytest.mark.parametrize("host", ["llama", "gpt2"])
def test_it_stands_beside_nope_is_decoded_trained_saved_and_removed(
    host: str, stack: list[str], tmp_path: Path
) -> None:
    model = tiny.build(host)
    native, state = tiny.logits(model, TOKENS), {name: value.clone() for name, value in model.state_dict().items()}
    loud(pospatch.apply(model, stack))
    whole = tiny.logits(model, TOKENS)
    assert (whole - native).abs().max() > 1e-3
    with torch.no_grad():
        begun = model(TOKENS[:, :15], use_cache=True)
        rest = model(TOKENS[:, 15:], past_key_values=begun.past_key_values).logits
    torch.testing.assert_close(torch.cat((begun.logits, rest), dim=1), whole, rtol=1e-4, atol=1e-4)
    model(TOKENS, labels=TOKENS).loss.backward()
    gains = [dict(model.named_parameters())[name] for name in pospatch.inspect(model).weights]
    assert len(gains) == 2 * model.config.num_hidden_layers
    assert all(gain.grad is not None and gain.grad.abs().max() > 0 for gain in gains)
    model.save_pretrained(tmp_path)
    assert torch.equal(tiny.logits(pospatch.from_pretrained(AutoModelForCausalLM, tmp_path).eval(), TOKENS), whole)
    pospatch.remove(model)
    assert torch.equal(tiny.logits(model, TOKENS), native)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_nothing_that_has_positions_stands_beside_nope() -> None:
    with pytest.raises(AlreadyPatched, match="'alibi' cannot stand beside it"):
        pospatch.apply(tiny.build("llama"), ["nope", "qk_norm", "alibi"])
