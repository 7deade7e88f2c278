"""Hosts: rows are valid data, wiring is measured rather than believed, and what cannot be reached is refused as it was."""

from __future__ import annotations

import copy
import pickle
import statistics
import warnings
from typing import Any

import pytest
import torch
import transformers as tf
from transformers import CONFIG_MAPPING

import pospatch
from pospatch.engine import _probe
from pospatch.engine._geometry import geometries
from pospatch.engine._parts import choose, towers
from pospatch.engine._patches import tokens_before
from pospatch.engine._sites import find
from pospatch.engine._survey import survey
from pospatch.errors import AlreadyPatched, BadOption, PospatchError, SeamChanged, UnsupportedHost
from pospatch.hosts import HOSTS, REFUSALS, Host
from tests import families, support, tiny

VARIANTS = {str(variant): variant for variant in families.variants()}


def built(name: str) -> Any:
    return families.build(VARIANTS[name])


def hidden(model: Any, inputs: Any = None) -> torch.Tensor:
    root, _ = choose(model, None)
    with _probe.quiet(root):
        return next(iter(_probe.forward(root, _probe.inputs(root) if inputs is None else inputs).values()))


def test_rows_name_families_of_transformers_once() -> None:
    named = [family for row in (*HOSTS, *REFUSALS) for family in row.families]
    assert len(named) == len(set(named))
    assert sorted(set(named) - set(CONFIG_MAPPING)) == []


def test_a_family_costs_a_word() -> None:
    """The median over all families is its own name in a row that was there; the others brought one row."""
    assert len(support.costs()) == sum(len(row.families) for row in HOSTS)
    assert statistics.median(support.costs()) == 1
    assert support.costs().count(1) == len(support.costs()) - len(HOSTS)
    row = Host(wiring="x", families=("a", "b"), table=("wpe", "other"), offset="padding_idx", note="what it is")
    assert support.words(row) == 1 + 3 + 2 + 2


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("llama-causal", "half"),
        ("gpt_neox-causal", "half"),
        ("cohere-causal", "interleaved"),
        ("glm-causal", "interleaved"),
        ("deepseek_v2-causal", "interleaved tail"),
        ("deepseek_v3-causal", "half tail"),
        ("llama4_text-causal", "interleaved"),
        ("modernbert-masked", "half"),
    ],
)
def test_pairs_are_measured(name: str, layout: str) -> None:
    model = built(name)
    sites = find(model)
    found = geometries(model, sites, survey(model, sites))
    assert {geometry.rotation.layout for geometry in found.values() if geometry.rotation is not None} == {layout}


def test_layers_without_rotation_are_seen() -> None:
    """SmolLM3 turns every layer but some; bands must not turn what the host leaves alone."""
    config = families.config_of("smollm3")
    config.no_rope_layers = [1, 0]
    model = tf.SmolLM3ForCausalLM(config).eval()
    families.loud(model)
    sites = find(model)
    found = geometries(model, sites, survey(model, sites))
    assert [geometry.rotation is not None for geometry in found.values()] == [True, False]
    before = model(tiny.ids()).logits
    pospatch.apply(model, "rerope", window=31)  # as far as the text goes: the bands say what the host said
    torch.testing.assert_close(model(tiny.ids()).logits, before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["cohere-causal", "deepseek_v3-causal", "glm4-causal", "phi-causal"])
def test_bands_that_reach_everything_are_the_host(name: str) -> None:
    """Our rotation in the host's own pairs, with its scaling and softcap, gives what the host gives."""
    model = built(name)
    before = hidden(model)
    pospatch.apply(model, "rerope", window=31)
    torch.testing.assert_close(hidden(model), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["bloom-causal", "mpt-causal"])
def test_alibi_is_the_native_alibi(name: str) -> None:
    model = built(name)
    before = hidden(model)
    pospatch.apply(model, "nope")
    assert (hidden(model) - before).abs().max() > 1e-2
    pospatch.remove(model)
    pospatch.apply(model, "alibi")
    torch.testing.assert_close(hidden(model), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gptj-causal", "codegen-causal", "roformer-causal"])
def test_tables_of_sines_take_other_frequencies(name: str) -> None:
    """`rope` at the host's own theta is the host; at another theta it is not."""
    model = built(name)
    before = hidden(model)
    pospatch.apply(model, "rope")
    torch.testing.assert_close(hidden(model), before, rtol=1e-3, atol=1e-3)
    pospatch.apply(model, "rope", rope_theta=100.0)
    assert (hidden(model) - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    "name",
    ["vit-base", "beit-base", "swin-base", "ctrl-causal", "m2m_100-seq2seq", "audio-spectrogram-transformer-base"],
)
def test_tables_of_every_form_copy_and_pickle(name: str) -> None:
    model = built(name)
    before = hidden(model)
    pospatch.apply(model, "alibi")
    patched = hidden(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(hidden(twin), patched)
        pospatch.remove(twin)
        assert torch.equal(hidden(twin), before)
        assert list(twin.state_dict()) == list(built(name).state_dict())
    assert torch.equal(hidden(model), patched)


def test_a_table_in_a_buffer_becomes_trainable() -> None:
    """M2M100 keeps its table in a buffer and looks it up without gradients."""
    model = built("m2m_100-seq2seq")
    pospatch.apply(model, "learned")
    ids = tiny.ids()
    model(input_ids=ids, decoder_input_ids=ids).logits.sum().backward()
    trained = {name: value.grad for name, value in model.named_parameters() if "pospatch_table" in name}
    assert len(trained) == 2
    assert all(grad is not None and grad.abs().sum() > 0 for grad in trained.values())


def test_grids_of_images_that_are_not_square() -> None:
    config = families.config_of("vit")
    config.image_size = (32, 48)
    model = tf.ViTModel(config).eval()
    families.loud(model)
    pospatch.apply(model, "rope_2d", prefix=1)
    state = next(m for m in model.modules() if "pospatch" in m._modules)._modules["pospatch"]
    assert state.geometry.grid == (4, 6)


BEFORE = {  # class token, class and distillation token, class token and registers, nothing
    "vit-base": 1,
    "deit-base": 2,
    "dinov2-base": 1,
    "dinov2_with_registers-base": 5,
    "dinov3_vit-base": 5,
    "clip_vision_model-base": 1,
    "siglip_vision_model-base": 0,
    "siglip-base": 0,
    "ijepa-base": 0,
    "beit-base": 1,
}


@pytest.mark.parametrize("name", BEFORE)
def test_patches_are_counted_from_the_first_one(name: str) -> None:
    """Whatever stands before them is seen in the model, so that the first patch is row 0, column 0."""
    model = built(name)
    if name == "dinov3_vit-base":
        model.config.num_register_tokens = 4
        model = families.loud(made := type(model)(model.config)) or made.eval()
    part = "encoder" if name == "siglip-base" else None
    pospatch.apply(model, "log_cpb", axes=2, zero_init=False, hidden=8, part=part)
    state = next(m for m in model.modules() if "pospatch" in m._modules)._modules["pospatch"]
    assert state.geometry.prefix == BEFORE[name]
    rows, columns = state.geometry.grid
    positions = torch.arange(BEFORE[name] + rows * columns)[None]
    bias = state.score.bias(positions, positions, state.weights_of("score"), state.geometry)[0]
    first = BEFORE[name]
    assert bias[:, :first].abs().sum() == 0
    assert torch.equal(bias[:, first, first + 1], bias[:, first + columns, first + columns + 1])
    assert bias[:, first].abs().sum() > 0


def test_tokens_after_the_patches_are_not_counted_before_them() -> None:
    config = families.config_of("yolos")
    config.num_detection_tokens = 3
    model = tf.YolosModel(config).eval()
    families.loud(model)
    sites = find(model)
    path, grid = next(iter(sites.attention)), (4, 4)
    assert tokens_before(model, sites, path, grid, 1 + 16 + 3) == 1


def test_a_table_of_patches_keeps_its_rows() -> None:
    with pytest.raises(BadOption, match="images of another size"):
        pospatch.apply(built("vit-base"), "learned", length=100)


def test_parts_of_an_encoder_decoder() -> None:
    model = tiny.build("bart")
    ids = tiny.ids()
    native = model.model(input_ids=ids, decoder_input_ids=ids)
    pospatch.apply(model, "alibi", part="decoder")
    half = model.model(input_ids=ids, decoder_input_ids=ids)
    assert torch.equal(half.encoder_last_hidden_state, native.encoder_last_hidden_state)
    assert (half.last_hidden_state - native.last_hidden_state).abs().max() > 1e-2
    with pytest.raises(AlreadyPatched, match="one part"):
        pospatch.apply(model, "logn", part="encoder")
    pospatch.apply(model, "logn")  # joins the decoder's patch
    states = [path for path, module in model.named_modules() if "pospatch" in module._modules]
    assert states
    assert all(".decoder." in path and path.endswith("self_attn") for path in states)
    pospatch.remove(model)
    pospatch.apply(model, "alibi", part="encoder")
    both = model.model(input_ids=ids, decoder_input_ids=ids)
    assert (both.encoder_last_hidden_state - native.encoder_last_hidden_state).abs().max() > 1e-2
    pospatch.remove(model)
    assert torch.equal(model.model(input_ids=ids, decoder_input_ids=ids).last_hidden_state, native.last_hidden_state)


def test_parts_of_a_model_that_joins_towers(tmp_path: Any) -> None:
    model = built("llava-composite")
    assert {name: [type(t).__name__ for t in found] for name, found in towers(model).items()} == {
        "decoder": ["LlamaModel"],
        "encoder": ["CLIPVisionModel"],
    }
    pospatch.apply(model, "yarn", factor=4.0)
    assert "yarn" in str(model.config.text_config.rope_parameters)
    pospatch.remove(model)
    pospatch.apply(model, "rope_2d", part="encoder")
    assert all("vision_tower" in path for path, module in model.named_modules() if "pospatch" in module._modules)
    assert model.config.pospatch["part"] == "encoder"


def test_a_part_that_is_not_there() -> None:
    with pytest.raises(BadOption, match="one stack"):
        pospatch.apply(tiny.build("llama"), "nope", part="encoder")
    with pytest.raises(BadOption, match="must be one of"):
        pospatch.apply(tiny.build("bart"), "rope", part="both")


def test_half_of_a_model_is_not_patched_unasked() -> None:
    """LongT5's encoder has mathematics of its own; its decoder alone can be patched."""
    model = built("longt5-seq2seq")
    with pytest.raises(UnsupportedHost, match="part='decoder'"):
        pospatch.apply(model, "alibi")
    pospatch.apply(model, "alibi", part="decoder")


class RemoteConfig(tf.LlamaConfig):
    model_type = "somebody_elses"


class RemoteModel(tf.LlamaForCausalLM):
    """As remote code comes: a family that no row knows."""

    config_class = RemoteConfig


class HidingModel(RemoteModel):
    """Positions where nobody looks for them."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.layers[1].register_forward_pre_hook(
            lambda module, args: (args[0] + torch.arange(args[0].shape[1])[:, None] * 0.5, *args[1:])
        )


def remote(cls: type) -> Any:
    torch.manual_seed(0)
    model = cls(RemoteConfig(**tiny._ROTARY)).eval()
    families.loud(model)
    return model


def test_an_unknown_family_is_detected_and_said() -> None:
    model = remote(RemoteModel)
    with pytest.warns(
        UserWarning, match=r"no row describes the family 'somebody_elses': 2 attention modules, 1 rotary"
    ):
        pospatch.apply(model, "alibi")
    pospatch.remove(model)
    with pytest.warns(UserWarning, match="detected"):
        pospatch.apply(model, "yarn", factor=2.0)


def test_an_unknown_family_that_hides_positions_is_refused_as_it_was() -> None:
    model = remote(HidingModel)
    before = model(tiny.ids()).logits
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SeamChanged, match="still knows positions"):
            pospatch.apply(model, "logn")  # a method that clears nothing is refused too: the wiring is not known
    assert torch.equal(model(tiny.ids()).logits, before)
    assert not [module for module in model.modules() if "pospatch" in module._modules]


@pytest.mark.parametrize(
    "name", [f"{family}-causal" for row in REFUSALS for family in row.families if f"{family}-causal" in VARIANTS]
)
def test_refused_families_say_why(name: str) -> None:
    model = built(name)
    reason = next(row.reason for row in REFUSALS if VARIANTS[name].family in row.families)
    with pytest.raises(UnsupportedHost) as told:
        pospatch.apply(model, "alibi")
    assert reason in str(told.value)


def test_rows_of_three_position_ids() -> None:
    model = built("qwen2_vl_text-base")
    pospatch.apply(model, "alibi")
    ids = tiny.ids()
    straight = torch.arange(ids.shape[1])[None]
    one = model(input_ids=ids).last_hidden_state
    rows = model(input_ids=ids, position_ids=straight.expand(3, 1, -1)).last_hidden_state
    torch.testing.assert_close(rows, one)


def test_no_error_but_ours() -> None:
    """A model that pospatch cannot probe raises one of its own errors."""
    with pytest.raises(PospatchError):
        pospatch.apply(built("dia-base"), "alibi")


def test_layers_that_reuse_keys_are_refused_to_what_acts_on_keys() -> None:
    """Their keys come from an earlier layer's cache, where what acts inside attention would misplace them."""
    found = next(name for name in VARIANTS if name.startswith("gemma3n_text"))
    config = copy.deepcopy(built(found).config)
    config.layer_types = ["full_attention"] * config.num_hidden_layers
    config.num_kv_shared_layers = 1
    model = type(built(found))(config)
    with pytest.raises(UnsupportedHost, match="reuses those of an earlier layer"):
        pospatch.apply(model, "self_extend")
