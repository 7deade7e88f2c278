"""Decision transformers: positions are the time steps that the caller gives, one for the three tokens of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

import pospatch
from pospatch.engine._probe import quiet
from pospatch.errors import UnsupportedHost
from pospatch.methods._base import Bias, Rotary
from pospatch.registry import method_class, names
from tests import tiny

STEPS, LIMIT = 9, 32


def built() -> Any:
    config = tf.DecisionTransformerConfig(
        state_dim=4, act_dim=2, hidden_size=32, max_ep_len=LIMIT, n_layer=2, n_head=4, n_positions=64
    )
    torch.manual_seed(0)
    return tiny.spread(tf.DecisionTransformerModel(config))


def trajectory(batch: int = 2) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    sizes = {"states": 4, "actions": 2, "returns_to_go": 1}
    steps = torch.tensor([[0, 1, 2, 4, 5, 9, 10, 11, 15]]).expand(batch, -1)  # some were not recorded
    return {
        **{name: torch.randn(batch, STEPS, size, generator=draw) for name, size in sizes.items()},
        "timesteps": steps,
        "attention_mask": torch.ones(batch, STEPS, dtype=torch.long),
    }


def actions(model: Any, **changes: Any) -> Tensor:
    with quiet(model):
        return model(**{**trajectory(), **changes}).action_preds


def fitting(*kinds: type) -> list[str]:
    """Methods of these kinds that stand alone on such a model."""
    known = pospatch.methods(built())
    return [name for name in names() if issubclass(method_class(name), kinds) and known[name]["fits"]]


def loud(model: Any) -> Any:
    """Random learned tensors: a bias that starts at zero shows nothing."""
    draw = torch.Generator().manual_seed(5)
    for name, value in model.named_parameters():
        if ".pospatch." in name:
            value.data.normal_(0.0, 1.0, generator=draw)
    return model


STEPPED = fitting(Bias, Rotary)  # what reads positions inside attention
FROM_THE_START = {"fire"}  # weighs a distance by how far the query itself stands
ALL = [name for name in names() if pospatch.methods(built())[name]["fits"]]


@pytest.mark.parametrize("name", STEPPED)
def test_time_steps_are_the_positions(name: str) -> None:
    """Later steps of the same distances give the same actions, beyond the table too; other distances do not."""
    model = loud(pospatch.apply(built(), name, **tiny.options(name, built())))
    steps = trajectory()["timesteps"]
    plain = actions(model)
    if name not in FROM_THE_START:
        torch.testing.assert_close(actions(model, timesteps=steps + 100 * LIMIT), plain, rtol=0, atol=2e-3)
    assert not torch.allclose(actions(model, timesteps=steps * 2), plain, atol=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_pads_kernels_files_and_undoing(name: str, tmp_path: Path) -> None:
    model = built()
    native = actions(model)
    loud(pospatch.apply(model, name, **tiny.options(name, model)))
    plain = actions(model)
    pads = {
        key: torch.nn.functional.pad(value, (*[0] * (2 * value.dim() - 4), 3, 0)) for key, value in trajectory().items()
    }
    torch.testing.assert_close(actions(model, **pads)[:, 3:], plain, rtol=0, atol=1e-4)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(actions(model), plain, rtol=0, atol=1e-4)
    model.set_attn_implementation("sdpa")
    model.save_pretrained(tmp_path)
    again = pospatch.from_pretrained(tmp_path, auto_class=tf.DecisionTransformerModel).eval()
    assert torch.equal(actions(again), plain)
    pospatch.remove(model)
    assert torch.equal(actions(model), native)


def test_a_table_grows_and_plain_transformers_loads_it(tmp_path: Path) -> None:
    model = built()
    late = trajectory()["timesteps"] + LIMIT
    with pytest.raises(IndexError):
        actions(model, timesteps=late)
    pospatch.apply(model, "learned", factor=2, resize="tile")
    assert model.config.max_ep_len == 2 * LIMIT
    assert torch.equal(actions(model, timesteps=late), actions(model))
    model.save_pretrained(tmp_path)
    plain = tf.DecisionTransformerModel.from_pretrained(tmp_path)
    assert torch.equal(actions(plain, timesteps=late), actions(model, timesteps=late))
    pospatch.remove(model)
    assert model.config.max_ep_len == LIMIT
    assert pospatch.inspect(model).trained_length == LIMIT


def test_times_between_the_steps() -> None:
    """A rotation turns by any number: seconds rather than steps."""
    model = pospatch.apply(built(), "rope")
    steps = trajectory()["timesteps"]
    plain = actions(model)
    seconds = actions(model, timesteps=steps * 0.5)
    assert not torch.allclose(seconds, plain, atol=1e-3)
    torch.testing.assert_close(actions(model, timesteps=steps * 0.5 + 7.25), seconds, rtol=0, atol=1e-4)


def test_attention_called_alone_says_what_it_lacks() -> None:
    model = pospatch.apply(built(), "rope")
    with pytest.raises(UnsupportedHost, match="timesteps"):
        model.encoder(inputs_embeds=torch.zeros(1, 6, 32))
