"""Coordinates that the caller gives: points in space and times between steps, read by every layer in place of positions."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import pospatch
from pospatch.errors import BadOption, UnsupportedHost
from pospatch.registry import build, method_class, names
from tests import tiny

LENGTH = 10
SPACE = [
    name
    for name in names()
    if hasattr(method_class(name), "numbers_taken") and "axes" in method_class(name).__dataclass_fields__
]


def points(axes: int, batch: int = 2) -> Tensor:
    return 4 * torch.rand(batch, LENGTH, axes, generator=torch.Generator().manual_seed(2))


def patched(name: str, host: str, axes: int) -> Any:
    model = pospatch.apply(tiny.build(host), name, axes=axes)
    for key, value in model.named_parameters():
        if ".pospatch." in key:
            value.data.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(1))
    return model


def hidden(model: Any, where: Tensor | None, tokens: Tensor | None = None, **keywords: Any) -> Tensor:
    tokens = tiny.ids(2, LENGTH) if tokens is None else tokens
    with torch.no_grad():
        if where is None:
            return model(input_ids=tokens, **keywords).logits
        with pospatch.coordinates(model, where):
            return model(input_ids=tokens, **keywords).logits


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=2e-4 * b.std().item())


@pytest.mark.parametrize("host", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("name", SPACE)
def test_only_differences_of_coordinates_count(name: str, axes: int, host: str) -> None:
    model, where = patched(name, host, axes), points(axes)
    plain = hidden(model, where)
    close(hidden(model, where + torch.linspace(-3, 5, axes)), plain)
    for axis in range(axes):
        moved = where.clone()
        moved[:, LENGTH // 2, axis] += 1.0
        assert not torch.allclose(hidden(model, moved), plain, atol=1e-2)
    assert not torch.allclose(hidden(model, None), plain, atol=1e-2)


@pytest.mark.parametrize("name", SPACE)
def test_points_have_no_order(name: str) -> None:
    """A two-sided model that is given its tokens and their points in another order gives the same in that order."""
    model, where, tokens = patched(name, "bert", 2), points(2), tiny.ids(2, LENGTH)
    order = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(0))
    close(hidden(model, where[:, order], tokens[:, order]), hidden(model, where, tokens)[:, order])


@pytest.mark.parametrize("name", SPACE)
@pytest.mark.parametrize("axes", [1, 2])
def test_whole_positions_on_every_axis_are_the_plain_call(name: str, axes: int) -> None:
    model = patched(name, "llama", axes)
    where = torch.arange(LENGTH)[None, :, None].expand(1, -1, axes)
    plain = hidden(model, None)
    close(hidden(model, where if axes > 1 else where[..., 0]), plain)
    close(hidden(model, where.float() + 0.5), plain)


def test_two_axes_are_those_of_an_image() -> None:
    """`rope_nd` at columns and rows turns as `rope_2d` does at patches."""
    from pospatch.geometry import Geometry

    geometry = Geometry(heads=2, head_dim=16, width=32, length=20, grid=(4, 5))
    x, patch = torch.randn(1, 2, 20, 16), torch.arange(20)
    where = torch.stack((patch % 5, patch // 5))[:, None]
    ours = build("rope_nd", axes=2, rope_theta=100.0).rotate(x, where, "query", {}, geometry)
    torch.testing.assert_close(ours, build("rope_2d", prefix=0).rotate(x, patch[None], "query", {}, geometry))


def test_steps_of_a_cache_get_their_own_coordinates() -> None:
    model, where, tokens = patched("rope_nd", "llama", 2), points(2), tiny.ids(2, LENGTH)
    whole = hidden(model, where, tokens)
    with torch.no_grad():
        with pospatch.coordinates(model, where[:, :6]):
            out = model(input_ids=tokens[:, :6], use_cache=True)
        parts = [out.logits]
        for n in range(6, LENGTH):
            with pospatch.coordinates(model, where[:, n : n + 1]):
                out = model(input_ids=tokens[:, n : n + 1], past_key_values=out.past_key_values, use_cache=True)
            parts.append(out.logits)
    close(torch.cat(parts, dim=1), whole)


def test_checkpointing_would_repeat_layers_without_them() -> None:
    model, where, tokens = patched("cayley_string", "llama", 2).train(), points(2), tiny.ids(2, LENGTH)
    model.gradient_checkpointing_enable()
    with pytest.raises(UnsupportedHost, match="gradient checkpointing"), pospatch.coordinates(model, where):
        pass
    checkpointed = hidden(model, where, tokens, use_cache=False)  # without gradients nothing is repeated
    model.gradient_checkpointing_disable()
    with pospatch.coordinates(model, where):
        logits = model(input_ids=tokens, use_cache=False).logits
    close(logits.detach(), checkpointed)
    logits.square().mean().backward()


def test_threads_do_not_disturb_each_other() -> None:
    model, where = patched("rope_nd", "bert", 2), points(2)
    plain, placed = hidden(model, None), hidden(model, where)
    with ThreadPoolExecutor(1) as other, pospatch.coordinates(model, where):
        close(other.submit(hidden, model, None).result(), plain)
        close(other.submit(hidden, model, where).result(), placed)
        with torch.no_grad():
            close(model(input_ids=tiny.ids(2, LENGTH)).logits, placed)
        twin = copy.deepcopy(model)
    close(hidden(twin, None), plain)


def test_blocks_nest_and_leave_nothing_behind() -> None:
    model, where = patched("rope_nd", "bert", 2), points(2)
    plain, inner = hidden(model, where), hidden(model, where * 2)
    with pospatch.coordinates(model, where), torch.no_grad():
        close(hidden(model, where * 2), inner)
        close(model(input_ids=tiny.ids(2, LENGTH)).logits, plain)
    twin = copy.deepcopy(model)
    close(hidden(twin, None), hidden(model, None))
    assert not torch.allclose(hidden(model, None), plain, atol=1e-2)
    with pytest.raises(ZeroDivisionError), pospatch.coordinates(model, where):
        _ = 1 / 0
    close(hidden(model, None), hidden(twin, None))


@pytest.mark.parametrize(
    ("host", "method", "options", "where", "said"),
    [
        ("bert", "rope_nd", {"axes": 3}, points(2), "takes 3 numbers"),
        ("bert", "rope_nd", {}, points(2)[:, :4], "coordinates are for 2 sequences of 4 tokens"),
        ("bert", "rope_nd", {}, points(2)[0, 0], "a tensor of numbers"),
        ("bert", "alibi", {}, points(2), "standing alone, and alibi acts here too"),
        ("bert", "learned", {}, points(2), "nothing inside the attention"),
        ("llama", "yarn", {"factor": 2.0}, points(2), "nothing inside the attention"),
        ("llama", "dynamic_ntk", {"factor": 2.0}, points(1), "depend on nothing else"),
    ],
)
def test_what_cannot_read_them_says_so(host: str, method: str, options: Any, where: Tensor, said: str) -> None:
    model = pospatch.apply(tiny.build(host), method, **options)
    with pytest.raises((BadOption, UnsupportedHost), match=said):
        hidden(model, where)


def test_an_image_model_places_its_patches_itself() -> None:
    import transformers as tf

    from tests import families

    model = pospatch.apply(tf.ViTModel(families.config_of("vit")), "rope_2d")
    with pytest.raises(BadOption, match="takes no numbers"), pospatch.coordinates(model, torch.zeros(1, 17, 2)):
        pass
