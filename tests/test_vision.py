"""Patches of images of any size: each stands where a model made for that size would put it, whatever the model was trained on."""

from __future__ import annotations

import copy
import warnings
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

import pospatch
from pospatch.errors import BadOption, UnsupportedHost
from pospatch.geometry import Geometry
from pospatch.registry import build, method_class, names
from tests import families, tiny

GRID = [name for name in names() if "prefix" in {item.name for item in fields(method_class(name))}]
START = {"log_cpb": {"axes": 2, "zero_init": False}}  # a bias that starts at zero shows nothing
FAMILIES = ["vit", "deit", "dinov2", "dinov2_with_registers", "clip_vision_model", "siglip_vision_model", "ijepa"]
SIZES = [(48, 48), (48, 64)]  # pixels; the models are made for 32 by 32, a patch is 8 by 8
PATCH = 8


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def built(family: str, size: Any = 32) -> Any:
    config = families.config_of(family)
    config.image_size = size
    torch.manual_seed(0)
    model = tf.AutoModel.from_config(config).eval()
    families.loud(model)
    return model


@cache
def before_patches(family: str) -> int:
    """Tokens that are no patches, as the family's own code puts them there."""
    with torch.no_grad():
        hidden = built(family)(pixel_values=torch.zeros(1, 3, 32, 32)).last_hidden_state
    return hidden.shape[1] - (32 // PATCH) ** 2


def hidden(model: Any, images: Tensor) -> Tensor:
    family = model.config.model_type
    flag = {} if family.startswith("dinov2") else {"interpolate_pos_encoding": True}  # which always takes any size
    with torch.no_grad():
        return model(pixel_values=images, **flag).last_hidden_state


def images(size: tuple[int, int], batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(4))


def patched(family: str, name: str, size: Any = 32, **options: Any) -> Any:
    return pospatch.apply(built(family, size), name, **{**START.get(name, {}), **options})


def takes(family: str, name: str) -> bool:
    if family != "siglip_vision_model" or name == "log_cpb":
        return True
    with pytest.raises(UnsupportedHost, match="mathematics of its own"):  # q and k cannot be turned there
        patched(family, name)
    return False


CELLS = (
    [("vit", name) for name in GRID]
    + [(family, "rope_2d") for family in FAMILIES]
    + [("siglip_vision_model", "log_cpb")]
)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("family", "name"), CELLS)
def test_patches_stand_where_a_model_of_that_size_puts_them(family: str, name: str, size: tuple[int, int]) -> None:
    """The reference is another model of the same weights: made for that size, or told the grid by options."""
    if not takes(family, name):
        return
    given = images(size)
    found = hidden(patched(family, name), given)
    if size[0] == size[1]:
        reference = patched(family, name, size[0])
    else:  # most families cannot be made for images that are not square
        grid = {"rows": size[0] // PATCH, "columns": size[1] // PATCH}
        known = {item.name for item in fields(method_class(name))}
        reference = patched(family, name, **{key: value for key, value in grid.items() if key in known})
    weights = {key: value for key, value in patched(family, name).state_dict().items() if "position" not in key}
    reference.load_state_dict(weights, strict=False)
    assert torch.equal(found, hidden(reference, given))
    assert not torch.allclose(found, hidden(built(family), given), atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_that_was_cleared_does_not_come_back_at_another_size(family: str) -> None:
    """Families resize the rows of their table themselves, past the module that holds them."""
    model = built(family)
    native = hidden(model, images((48, 64)))
    pospatch.apply(model, "nope", allow_bidirectional=True)
    before = before_patches(family)
    given = images((48, 64))
    straight = hidden(model, given)
    cut = given.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).flatten(2, 3).flip(2)
    cut = cut.unflatten(2, (6, 8)).permute(0, 1, 2, 4, 3, 5).reshape(given.shape)
    turned = hidden(model, cut)
    torch.testing.assert_close(turned[:, before:], straight[:, before:].flip(1), rtol=0, atol=1e-4)
    assert not torch.allclose(native, straight, atol=1e-2)
    pospatch.remove(model)
    assert torch.equal(hidden(model, given), native)


def test_a_model_made_for_oblong_images_reads_others() -> None:
    """ViT's own resizing takes its table for a square; without the table there is nothing to resize."""
    model = built("vit", (32, 48))
    with pytest.raises(RuntimeError):
        hidden(model, images((48, 32)))
    pospatch.apply(model, "rope_2d")
    reference = pospatch.apply(built("vit", (48, 32)), "rope_2d")
    assert torch.equal(hidden(model, images((48, 32))), hidden(reference, images((48, 32))))


def test_the_models_own_check_of_the_size_stays() -> None:
    model = pospatch.apply(built("vit"), "rope_2d")
    with pytest.raises(ValueError, match="doesn't match model"):
        model(pixel_values=images((48, 48)))


@pytest.mark.parametrize("name", GRID)
def test_a_saved_model_reads_every_size(name: str, tmp_path: Path) -> None:
    model = patched("vit", name)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.01)
    model.save_pretrained(tmp_path)
    again = pospatch.from_pretrained(tmp_path, auto_class=tf.ViTModel).eval()
    for size in SIZES:
        assert torch.equal(hidden(again, images(size)), hidden(model, images(size)))


def test_copies_know_their_own_images() -> None:
    model = pospatch.apply(built("vit"), "rope_2d")
    wanted = hidden(model, images((48, 64)))
    twin = copy.deepcopy(model)
    hidden(model, images((64, 48)))
    assert torch.equal(hidden(twin, images((48, 64))), wanted)


def test_heads_and_whole_graphs() -> None:
    config = families.config_of("vit")
    config.num_labels = 3
    model = pospatch.apply(tf.ViTForImageClassification(config).eval(), "rope_2d")
    given = images((48, 64))
    with torch.no_grad():
        plain = model(pixel_values=given, interpolate_pos_encoding=True).logits
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(pixel_values=given, interpolate_pos_encoding=True).logits, plain)


def test_what_reads_no_grid_is_not_held_to_one() -> None:
    """A 1-D method lets layers repeat for images of changing shape and take any number of patches."""
    model = pospatch.apply(built("vit"), "alibi").train()
    given = [images((48, 64)), images((64, 48))]
    plain = gradients(model, given)
    with torch.no_grad():
        assert model.layers[0](torch.zeros(1, 31, 32)) is not None
    model.gradient_checkpointing_enable()
    again = gradients(model, given)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(again, plain, strict=True))


def gradients(model: Any, given: list[Tensor]) -> list[Tensor]:
    model.zero_grad()
    outputs = [model(pixel_values=image, interpolate_pos_encoding=True).last_hidden_state for image in given]
    for output in outputs:
        output.square().mean().backward()
    return [value.grad.clone() for value in model.parameters() if value.grad is not None]


def test_checkpointing_repeats_layers_at_the_same_grid_or_says_why_not() -> None:
    model = pospatch.apply(built("vit"), "rope_2d").train()
    given = [images((48, 64)), images((32, 32))]
    plain = gradients(model, given)
    model.gradient_checkpointing_enable()
    again = gradients(model, given)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(again, plain, strict=True))
    with pytest.raises(UnsupportedHost, match="2 shapes"):
        gradients(model, [images((48, 64)), images((64, 48))])


def test_layers_called_alone_say_that_they_do_not_know() -> None:
    model = pospatch.apply(built("vit"), "rope_2d")
    layer = model.layers[0]
    with torch.no_grad():
        layer(torch.zeros(1, 17, 32))  # as many tokens as an image that the model is made for
        with pytest.raises(UnsupportedHost, match="no image had so many"):
            layer(torch.zeros(1, 31, 32))


@pytest.mark.parametrize(
    "family", ["vit", "dinov2_with_registers", "clip_vision_model", "siglip_vision_model", "ijepa"]
)
@pytest.mark.parametrize("layout", ["interleaved", "half", "whisper"])
def test_sines_of_rows_and_columns(family: str, layout: str) -> None:
    """Each patch's vector is that of its row, then that of its column, as the one-dimensional table has them."""
    model = pospatch.apply(built(family), "sinusoidal", axes=2, layout=layout)
    name = next(name for name in model.state_dict() if "position_embedding" in name)
    table = model.state_dict()[name].view(-1, 32)
    before = len(table) - 16
    one = build("sinusoidal", layout=layout, length=4).table(Geometry(heads=1, head_dim=16, width=16, length=4))
    assert not table[:before].any()
    for row in range(4):
        for column in range(4):
            assert torch.equal(table[before + 4 * row + column], torch.cat((one[row], one[column])))
    assert hidden(model, images((48, 48))).shape[1] == before_patches(family) + 36


def test_sines_of_two_axes_say_what_they_need() -> None:
    with pytest.raises(BadOption, match="leave length=9 out"):
        build("sinusoidal", axes=2, length=9)
    with pytest.raises(UnsupportedHost, match="no 2-D grid"):
        pospatch.apply(tiny.build("bert"), "sinusoidal", axes=2)
