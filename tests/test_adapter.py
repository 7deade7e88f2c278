"""A patch alone, and adapters of peft trained under one: put on the right base, refused on any other and by peft alone."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

import pospatch
from pospatch import registry
from pospatch.checkpoint._own import own_tensors
from pospatch.errors import AlreadyPatched, CheckpointError, NotPatched, UnsupportedHost
from tests import tiny
from tests.test_api import assert_same, snapshot
from tests.test_checkpoint import patched, stir, tokens, train

TARGETS = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "bert": ["query", "value"]}
UNDER = {"llama": ("yarn", {"factor": 2}), "gpt2": ("t5_bias", {}), "bert": ("t5_bias", {})}


@pytest.mark.parametrize("host", TARGETS)
@pytest.mark.parametrize("method", registry.names())
def test_the_patch_alone_goes_from_base_to_base(tmp_path: Path, host: str, method: str) -> None:
    model, reason = patched(host, method)
    if model is None:
        assert reason
        return
    pospatch.save_adapter(model, tmp_path)
    weights = sum(value.numel() * value.element_size() for value in model.parameters())
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < weights / 2
    bare = tiny.build(host)
    assert pospatch.load_adapter(bare, tmp_path) is bare
    ids = tokens(model)
    with torch.no_grad():
        assert torch.equal(tiny.logits(bare, ids), tiny.logits(model, ids))
    assert pospatch.inspect(bare).stack == pospatch.inspect(model).stack
    pospatch.remove(bare)
    assert_same(snapshot(bare)["outputs"], snapshot(tiny.build(host))["outputs"])


def test_record_is_small_plain_and_without_paths(tmp_path: Path) -> None:
    tiny.build("llama").save_pretrained(tmp_path / "base")
    model = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    pospatch.save_adapter(pospatch.apply(model, "yarn", factor=2), tmp_path / "adapter")
    text = (tmp_path / "adapter" / "pospatch_adapter.json").read_text()
    assert str(tmp_path) not in text
    record = json.loads(text)
    assert record["base"]["name"] == "base"
    assert record["stack"] == [{"method": "yarn", "factor": 2.0}]
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["pospatch_adapter.json"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, wanted 2"),
        ({"num_key_value_heads": 4}, "num_key_value_heads is 4, wanted 2"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, "rope_parameters"),
        ({"max_position_embeddings": 64}, "max_position_embeddings is 64, wanted 32"),
    ],
)
def test_another_base_is_refused(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    pospatch.save_adapter(pospatch.apply(tiny.build("llama"), "yarn", factor=2), tmp_path)
    config = tf.LlamaConfig(**{**tiny.build("llama").config.to_dict(), **change})
    other = tf.LlamaForCausalLM(config).eval()
    before = snapshot(other)
    with pytest.raises(CheckpointError, match=word):
        pospatch.load_adapter(other, tmp_path)
    assert_same(snapshot(other), before)
    gpt2 = tiny.build("gpt2")
    with pytest.raises(CheckpointError, match="model_type"):
        pospatch.load_adapter(gpt2, tmp_path)


def test_what_does_not_fit_leaves_the_base_as_it_was(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = pospatch.apply(tiny.build("gpt2"), "t5_bias")
    stir(model)
    pospatch.save_adapter(model, tmp_path)
    file = tmp_path / "pospatch_adapter.safetensors"
    tensors = load_file(file)
    first = next(iter(tensors))
    broken: dict[str, Any] = {
        "shape": lambda: save_file({**tensors, first: torch.zeros(3, 3)}, file),
        "missing": lambda: save_file({name: value for name, value in tensors.items() if name != first}, file),
        "unknown": lambda: save_file({**tensors, "x": torch.zeros(1)}, file),
        "not a whole safetensors": lambda: file.write_bytes(file.read_bytes()[:200]),
        "incomplete": lambda: file.unlink(),
    }
    for word, damage in broken.items():
        damage()
        bare = tiny.build("gpt2")
        before = snapshot(bare)
        with pytest.raises(CheckpointError, match=word):
            pospatch.load_adapter(bare, tmp_path)
        assert_same(snapshot(bare), before)


def test_where_there_is_nothing_to_save_or_too_much(tmp_path: Path) -> None:
    with pytest.raises(NotPatched):
        pospatch.save_adapter(tiny.build("llama"), tmp_path)
    with pytest.raises(CheckpointError, match=r"no pospatch_adapter\.json"):
        pospatch.load_adapter(tiny.build("llama"), tmp_path)
    pospatch.save_adapter(pospatch.apply(tiny.build("llama"), "yarn", factor=2), tmp_path)
    with pytest.raises(AlreadyPatched, match="remove"):
        pospatch.load_adapter(pospatch.apply(tiny.build("llama"), "alibi"), tmp_path)
    with pytest.raises(TypeError, match="revison"):
        pospatch.load_adapter(tiny.build("llama"), tmp_path, revison="main")


def lora(model: Any, host: str) -> Any:
    torch.manual_seed(3)
    return get_peft_model(model, LoraConfig(target_modules=TARGETS[host], r=2, init_lora_weights=False))


def wrapped(host: str, order: str) -> Any:
    """Patched and with a LoRA, in either order, trained a little together with the patch's own tensors."""
    method, options = UNDER[host]
    model = tiny.build(host)
    if order == "patch first":
        model = lora(pospatch.apply(model, method, **options), host)
    else:
        model = pospatch.apply(lora(model, host), method, **options)
    stir(model)
    train(model)
    return model


@pytest.mark.parametrize("order", ["patch first", "lora first"])
@pytest.mark.parametrize("host", TARGETS)
def test_a_lora_carries_the_patch(tmp_path: Path, host: str, order: str) -> None:
    model = wrapped(host, order)
    model.save_pretrained(tmp_path)
    ids = tiny.ids(2, 40)
    with torch.no_grad():
        wanted = tiny.logits(model, ids)
    with pytest.raises(KeyError, match="pip install pospatch"):  # peft alone, on a bare base
        PeftModel.from_pretrained(tiny.build(host), tmp_path)
    bare = pospatch.load_peft(tiny.build(host), tmp_path)
    method, options = UNDER[host]
    same = pospatch.load_peft(pospatch.apply(tiny.build(host), method, **options), tmp_path)
    with torch.no_grad():
        assert torch.equal(tiny.logits(bare, ids), wanted)
        assert torch.equal(tiny.logits(same, ids), wanted)
    other = pospatch.apply(tiny.build(host), "alibi")
    before = snapshot(other)
    with pytest.raises(AlreadyPatched, match="alibi"):
        pospatch.load_peft(other, tmp_path)
    assert_same(snapshot(other), before)
    bare.save_pretrained(tmp_path / "again")  # loaded and saved again it still carries the patch
    again = pospatch.load_peft(tiny.build(host), tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(tiny.logits(again, ids), wanted)


@pytest.mark.parametrize("order", ["patch first", "lora first"])
@pytest.mark.parametrize("host", TARGETS)
def test_merged_in_both_orders_and_saved(tmp_path: Path, host: str, order: str) -> None:
    model = wrapped(host, order)
    ids = tiny.ids(2, 40)
    merged = model.merge_and_unload()
    with torch.no_grad():
        wanted = tiny.logits(merged, ids)
    merged.save_pretrained(tmp_path)
    loaded = pospatch.from_pretrained(type(merged), tmp_path)
    with torch.no_grad():
        assert torch.equal(tiny.logits(loaded, ids), wanted)


def patched_first(host: str) -> Any:
    method, options = UNDER[host]
    return lora(pospatch.apply(tiny.build(host), method, **options), host)


def lora_first(host: str) -> Any:
    method, options = UNDER[host]
    return pospatch.apply(lora(tiny.build(host), host), method, **options)


def lora_first_and_the_model_inside_patched(host: str) -> Any:
    method, options = UNDER[host]
    model = lora(tiny.build(host), host)
    pospatch.apply(model.get_base_model(), method, **options)
    return model


def added_by_transformers(host: str) -> Any:
    method, options = UNDER[host]
    torch.manual_seed(3)
    model = pospatch.apply(tiny.build(host), method, **options)
    model.add_adapter(LoraConfig(target_modules=TARGETS[host], r=2, init_lora_weights=False))
    return model


def one_config_for_two_models(host: str) -> Any:
    """The other model has another patch, and is saved in between."""
    method, options = UNDER[host]
    config = LoraConfig(target_modules=TARGETS[host], r=2, init_lora_weights=False)
    torch.manual_seed(3)
    model = get_peft_model(pospatch.apply(tiny.build(host), method, **options), config)
    other = get_peft_model(pospatch.apply(tiny.build(host), "alibi"), config)
    other.state_dict()
    return model


ORDERS = [
    patched_first,
    lora_first,
    lora_first_and_the_model_inside_patched,
    added_by_transformers,
    one_config_for_two_models,
]


@pytest.mark.parametrize("make", ORDERS)
@pytest.mark.parametrize("host", TARGETS)
def test_saved_before_any_forward_it_carries_the_patch(tmp_path: Path, host: str, make: Any) -> None:
    model = make(host)
    stir(model)
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert content["pospatch"]["stack"][0]["method"] == UNDER[host][0]
    with pytest.raises(KeyError, match="pip install pospatch"):
        PeftModel.from_pretrained(tiny.build(host), tmp_path)
    ids = tiny.ids(2, 40)
    loaded = pospatch.load_peft(tiny.build(host), tmp_path)
    with torch.no_grad():
        assert torch.equal(tiny.logits(loaded, ids), tiny.logits(model, ids))


@pytest.mark.parametrize("make", [patched_first, lora_first])
def test_prompts_carry_the_patch_and_other_files_survive(tmp_path: Path, make: Any) -> None:
    """Adapters that peft keeps on its wrapper alone; several under names of their own; a README that peft adds to."""
    from peft import PromptTuningConfig

    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nmine\n")
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    if make is patched_first:
        model = get_peft_model(pospatch.apply(tiny.build("llama"), "t5_bias"), config)
    else:
        model = pospatch.apply(get_peft_model(tiny.build("llama"), config), "t5_bias")
    model.save_pretrained(tmp_path)
    with pytest.raises(KeyError, match="pip install pospatch"):
        PeftModel.from_pretrained(tiny.build("llama"), tmp_path)
    loaded = pospatch.load_peft(tiny.build("llama"), tmp_path)
    with torch.no_grad():
        ids = tiny.ids(2, 20)
        assert torch.equal(tiny.logits(loaded, ids), tiny.logits(model, ids))
    assert "license: mit" in (tmp_path / "README.md").read_text()
    assert "mine" in (tmp_path / "README.md").read_text()
    named = make("llama")
    named.add_adapter("second", LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    named.save_pretrained(tmp_path)
    for folder in (tmp_path, tmp_path / "second"):
        assert json.loads((folder / "adapter_config.json").read_text())["pospatch"]["stack"][0]["method"] == "yarn"
    named.save_pretrained(tmp_path / "elsewhere", is_main_process=False)
    assert not (tmp_path / "elsewhere").exists()


def test_an_adapter_without_a_patch_on_a_patched_base(tmp_path: Path) -> None:
    lora(tiny.build("llama"), "llama").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="without a patch"):
        pospatch.load_peft(pospatch.apply(tiny.build("llama"), "yarn", factor=2), tmp_path)
    loaded = pospatch.load_peft(tiny.build("llama"), tmp_path)
    assert isinstance(loaded, PeftModel)
    assert pospatch.inspect(loaded).method is None


def test_after_remove_an_adapter_carries_nothing(tmp_path: Path) -> None:
    model = wrapped("llama", "patch first")
    pospatch.remove(model)
    model.save_pretrained(tmp_path)
    assert "pospatch" not in (tmp_path / "adapter_config.json").read_text()
    PeftModel.from_pretrained(tiny.build("llama"), tmp_path)


def test_after_remove_prompts_carry_nothing(tmp_path: Path) -> None:
    """Adapters that peft keeps on its wrapper alone, armed by an earlier save."""
    from peft import PromptTuningConfig

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(pospatch.apply(tiny.build("llama"), "t5_bias"), config)
    model.save_pretrained(tmp_path)
    pospatch.remove(model)
    model.save_pretrained(tmp_path)
    assert "pospatch" not in (tmp_path / "adapter_config.json").read_text()
    PeftModel.from_pretrained(tiny.build("llama"), tmp_path)


def test_an_adapter_without_a_patch_on_a_base_saved_natively(tmp_path: Path) -> None:
    lora(tiny.build("llama"), "llama").save_pretrained(tmp_path / "adapter")
    pospatch.apply(tiny.build("llama"), "yarn", factor=2).save_pretrained(tmp_path / "base")
    base = type(tiny.build("llama")).from_pretrained(tmp_path / "base")
    with pytest.raises(CheckpointError, match="without a patch"):
        pospatch.load_peft(base, tmp_path / "adapter")


def test_a_type_that_is_no_word_is_refused(tmp_path: Path) -> None:
    patched_first("llama").save_pretrained(tmp_path)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    content["pospatch"]["peft_type"] = []
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"type of the adapter is \[\]"):
        pospatch.load_peft(tiny.build("llama"), tmp_path)


def test_copies_are_independent(tmp_path: Path) -> None:
    model = wrapped("llama", "patch first")
    twin = copy.deepcopy(model)
    pospatch.remove(model)
    with torch.no_grad():
        twin(input_ids=tiny.ids(1, 8))
    twin.save_pretrained(tmp_path)
    assert "pip install pospatch" in (tmp_path / "adapter_config.json").read_text()
    assert pospatch.inspect(twin).method == "yarn"


@pytest.mark.parametrize("grown", [False, True])
@pytest.mark.parametrize("method", ["yarn", "alibi", "t5_bias"])
def test_a_lora_on_a_patched_checkpoint_is_saved(tmp_path: Path, method: str, grown: bool) -> None:
    """peft asks the base's config.json for its vocabulary, by a class that stops at our guard."""
    pospatch.apply(tiny.build("llama"), method, **({"factor": 2} if method == "yarn" else {})).save_pretrained(
        tmp_path / "base"
    )
    load = tf.AutoModelForCausalLM.from_pretrained
    model = load(tmp_path / "base")
    if grown:
        model.resize_token_embeddings(tiny.VOCABULARY + 5)
    lora = get_peft_model(model, LoraConfig(target_modules=TARGETS["llama"], init_lora_weights=False)).eval()
    before = dict(vars(lora))
    lora.save_pretrained(tmp_path / "lora")
    assert set(vars(lora)) == set(before)
    assert lora.config.vocab_size == tiny.VOCABULARY + 5 * grown
    saved = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert any("embed_tokens" in name for name in saved) == grown
    base = load(tmp_path / "base")
    if grown:
        base.resize_token_embeddings(tiny.VOCABULARY + 5)
    again = pospatch.load_peft(base, tmp_path / "lora").eval()
    with torch.no_grad():
        assert torch.equal(tiny.logits(again, tiny.ids()), tiny.logits(lora, tiny.ids()))


def two_adapters(folder: Path, host: str) -> Any:
    """Adapters `default` and `second` under one patch, saved; returns the model that has both."""
    model = patched_first(host)
    model.add_adapter("second", LoraConfig(target_modules=TARGETS[host][:1], r=3, init_lora_weights=False))
    stir(model)
    model.save_pretrained(folder)
    return model


def by_peft(host: str, folder: Path) -> Any:
    return pospatch.load_peft(tiny.build(host), folder)


def by_transformers(host: str, folder: Path) -> Any:
    model = pospatch.load_peft(tiny.build(host), folder).unload()  # the patch with its tensors is left
    model.load_adapter(str(folder), adapter_name="default")
    return model


@pytest.mark.parametrize("load", [by_peft, by_transformers])
@pytest.mark.parametrize("host", TARGETS)
def test_a_further_adapter_stands_beside_the_first(tmp_path: Path, host: str, load: Any) -> None:
    """By the `load_adapter` of peft and of transformers, from a folder and from one below it."""
    model, ids = two_adapters(tmp_path, host), tiny.ids(2, 40)
    loaded = load(host, tmp_path)
    loaded.load_adapter(str(tmp_path), adapter_name="second", subfolder="second")
    loaded.load_adapter(str(tmp_path / "second"), adapter_name="third")
    for name, source in {"second": "second", "third": "second", "default": "default"}.items():
        model.set_adapter(source)
        loaded.set_adapter(name)
        with torch.no_grad():
            assert torch.equal(tiny.logits(loaded, ids), tiny.logits(model, ids))
    loaded.save_pretrained(tmp_path / "again")
    folder = tmp_path / "again" / ("third" if load is by_peft else "")
    assert json.loads((folder / "adapter_config.json").read_text())["pospatch"]["stack"][0]["method"] == UNDER[host][0]


@pytest.mark.parametrize("load", [by_peft, by_transformers])
def test_a_further_adapter_that_does_not_fit_is_refused(tmp_path: Path, load: Any) -> None:
    lora(pospatch.apply(tiny.build("gpt2"), "alibi"), "gpt2").save_pretrained(tmp_path / "other patch")
    lora(tiny.build("gpt2"), "gpt2").save_pretrained(tmp_path / "no patch")
    other = patched_first("gpt2")
    stir(other)
    for value in other.parameters():
        value.data.add_(0.5)
    other.save_pretrained(tmp_path / "other tensors")
    config = tiny.build("gpt2").config
    longer = tf.GPT2LMHeadModel(tf.GPT2Config(**{**config.to_dict(), "n_positions": 2 * config.n_positions}))
    lora(pospatch.apply(longer, "t5_bias"), "gpt2").save_pretrained(tmp_path / "other base")
    two_adapters(tmp_path / "fits", "gpt2")
    model = load("gpt2", tmp_path / "fits")
    before = snapshot(model)
    (tmp_path / "nothing").mkdir()
    refused: dict[str, tuple[type[Exception], str]] = {
        "other patch": (AlreadyPatched, "alibi.*load_peft"),
        "no patch": (CheckpointError, "without a patch"),
        "other tensors": (CheckpointError, "other values of 2 of the patch's own tensors"),
        "other base": (CheckpointError, "max_position_embeddings"),
        "nothing": (CheckpointError, r"no adapter_config\.json"),
    }
    for folder, (error, word) in refused.items():
        with pytest.raises(error, match=word):
            model.load_adapter(str(tmp_path / folder), adapter_name="second")
        assert_same(snapshot(model), before)
        assert "second" not in model.peft_config
    (tmp_path / "fits" / "second" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="the adapter is incomplete"):
        model.load_adapter(str(tmp_path / "fits" / "second"), adapter_name="second")
    assert_same(snapshot(model), before)


@pytest.mark.parametrize("name", ["default", None])
def test_an_adapter_alone_brings_the_tensors_of_its_patch(tmp_path: Path, name: str | None) -> None:
    """Loaded again under its own name, as transformers' Trainer does to resume, or as the first of a patched model."""
    saved = patched_first("gpt2")
    stir(saved)
    saved.save_pretrained(tmp_path)
    model = patched_first("gpt2") if name else pospatch.apply(tiny.build("gpt2"), "t5_bias")
    model.load_adapter(str(tmp_path), **({"adapter_name": name} if name else {}))
    with torch.no_grad():
        assert torch.equal(tiny.logits(model, tiny.ids(2, 40)), tiny.logits(saved, tiny.ids(2, 40)))


@pytest.mark.parametrize("load", [by_peft, by_transformers])
def test_after_remove_further_adapters_are_left_to_peft(tmp_path: Path, load: Any) -> None:
    lora(tiny.build("llama"), "llama").save_pretrained(tmp_path / "bare")
    two_adapters(tmp_path / "fits", "llama")
    model = load("llama", tmp_path / "fits")
    pospatch.remove(model)
    model.load_adapter(str(tmp_path / "bare"), adapter_name="second")
    with pytest.raises(KeyError, match="pip install pospatch"):
        model.load_adapter(str(tmp_path / "fits" / "second"), adapter_name="third")


AROUND = {  # what of peft is put around gpt2's table
    "lora": {"target_modules": ["wpe"]},
    "whole": {"target_modules": ["c_attn"], "modules_to_save": ["wpe"]},
    "rows": {"target_modules": ["c_attn"], "trainable_token_indices": {"wpe": [1, 2]}},
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("method", ["learned", "hierarchical"])
def test_the_patch_keeps_its_names_where_peft_wraps_a_layer_that_holds_its_tensors(
    tmp_path: Path, method: str, around: str
) -> None:
    model = pospatch.apply(tiny.build("gpt2"), method, **({"length": 96} if method == "learned" else {}))
    pospatch.save_adapter(model, tmp_path / "before")
    wanted = set(load_file(tmp_path / "before" / "pospatch_adapter.safetensors"))
    peft = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, **AROUND[around]))
    stir(peft)
    train(peft)
    peft.save_pretrained(tmp_path / "lora")
    assert set(load_file(tmp_path / "lora" / "adapter_pospatch.safetensors")) == wanted
    assert set(own_tensors(peft)) == wanted
    pospatch.save_adapter(peft, tmp_path / "alone")
    alone = pospatch.load_adapter(tiny.build("gpt2"), tmp_path / "alone")
    loaded = pospatch.load_peft(tiny.build("gpt2"), tmp_path / "lora")
    ids = tiny.ids(2, 40)
    with torch.no_grad():
        assert torch.equal(tiny.logits(loaded, ids), tiny.logits(peft, ids))
        peft.load_adapter(str(tmp_path / "lora"), adapter_name="second")
        with peft.disable_adapter():
            assert torch.equal(tiny.logits(alone, ids), tiny.logits(peft, ids))
    before = snapshot(peft)
    with pytest.raises(UnsupportedHost, match=r"peft has wrapped transformer\.wpe"):
        pospatch.apply(peft, "logn")
    assert_same(snapshot(peft), before)
