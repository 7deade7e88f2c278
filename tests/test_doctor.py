"""The doctor: every check finds its case and nothing in sound checkpoints; where it says misread, transformers does differ."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import pospatch
from pospatch.checkpoint.doctor import Diagnosis
from pospatch.checkpoint.doctor.checks import CHECKS
from pospatch.errors import BadOptionType, CheckpointError, CheckpointWarning, PospatchError
from tests import tiny

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LISTS = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny host, saved once."""
    root = tmp_path_factory.mktemp("saved")

    def folder(host: str) -> Path:
        if not (root / host).exists():
            tiny.build(host).save_pretrained(root / host)
        return root / host

    return folder


def edited(source: Path, target: Path, **changes: Any) -> Path:
    """A copy with fields of config.json set, or taken out where they are None."""
    shutil.copytree(source, target)
    config = {**json.loads((target / "config.json").read_text()), **changes}
    (target / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )
    return target


def found(path: Path, **options: Any) -> dict[str, str]:
    """The worst severity of each check's findings."""
    seen = pospatch.inspect(path, **options)
    assert isinstance(seen, Diagnosis)
    assert json.loads(json.dumps(seen.to_dict()))["findings"] == [item.to_dict() for item in seen.findings]
    for item in seen.findings:
        assert item.got
        assert item.wanted
        assert item.remedy
    return {item.check: item.severity for item in reversed(seen.findings)}


@pytest.mark.parametrize("host", tiny.HOSTS)
def test_sound_checkpoints_have_no_errors(saved: Any, host: str) -> None:
    seen = pospatch.inspect(saved(host))
    assert isinstance(seen, Diagnosis)
    assert seen.ok
    assert not [item for item in seen.findings if item.severity != "note"]
    of_the_model = pospatch.inspect(tiny.build(host)).to_dict()
    assert {name: seen.to_dict()[name] for name in of_the_model} == of_the_model  # all that the loaded model shows


@pytest.mark.parametrize(("host", "method"), [("llama", "yarn"), ("llama", "alibi"), ("gpt2", "rope"), ("opt", "fire")])
def test_patched_checkpoints_show_their_patch(tmp_path: Path, host: str, method: str) -> None:
    model = tiny.build(host)
    pospatch.apply(model, method, **tiny.options(method, model)).save_pretrained(tmp_path)
    seen = pospatch.inspect(tmp_path)
    assert isinstance(seen, Diagnosis)
    assert seen.ok, str(seen)
    loaded = pospatch.inspect(pospatch.from_pretrained(type(model), tmp_path))
    assert (seen.stack, seen.method, seen.native) == (loaded.stack, loaded.method, loaded.native)
    assert [row["now"] for row in seen.sites] == [row["now"] for row in loaded.sites]
    assert seen.trained_length == loaded.trained_length
    assert method in str(seen)


Made = Callable[[Any, Path], Any]
CASES: dict[str, tuple[str, str, Made]] = {}


def case(check: str, severity: str) -> Callable[[Made], Made]:
    """A way to bring a check about."""

    def listed(make: Made) -> Made:
        CASES[make.__name__] = (check, severity, make)
        return make

    return listed


def rope(saved: Any, path: Path, parameters: Any, **changes: Any) -> Path:
    return edited(saved("llama"), path, rope_parameters=parameters, **changes)


@case("refused", "error")
def longrope_without_a_list(saved: Any, path: Path) -> Any:
    return rope(saved, path, {**LISTS, "short_factor": [1.0] * 4})


@case("unknown_type", "error")
def a_type_of_nobody(saved: Any, path: Path) -> Any:
    return rope(saved, path, {"rope_type": "yarnn", "factor": 4.0, "rope_theta": 1e4})


@case("unknown_type", "error")
def phi3s_old_name_on_a_llama(saved: Any, path: Path) -> Any:
    return rope(saved, path, {**LISTS, "rope_type": "su", "short_factor": [1.0] * 4, "long_factor": [1.0] * 4})


@case("lost_theta", "error")
def both_spellings_with_theta_inside_the_one_that_loses(saved: Any, path: Path) -> Any:
    return rope(saved, path, {"rope_type": "default", "rope_theta": 5e5}, rope_scaling=YARN)


@case("lost_theta", "error")
def theta_under_a_name_that_is_not_read(saved: Any, path: Path) -> Any:
    return rope(saved, path, None, rope_base=5e5)


@case("lost_theta", "error")
def theta_of_llama_on_a_gpt_neox(saved: Any, path: Path) -> Any:
    return edited(saved("gpt_neox"), path, rope_parameters=None, rotary_pct=0.5, rope_theta=5e5)


@case("lost_theta", "warning")
def two_thetas(saved: Any, path: Path) -> Any:
    return rope(saved, path, {"rope_type": "default", "rope_theta": 5e5}, rope_theta=1e6)


@case("lost_theta", "error")
def theta_of_a_gptj(saved: Any, path: Path) -> Any:
    size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "rotary_dim": 4, "vocab_size": 99}
    tf.GPTJForCausalLM(tf.GPTJConfig(**size, bos_token_id=1, eos_token_id=2)).save_pretrained(path / "j")
    return edited(path / "j", path / "k", rope_theta=5e5)


@case("lost_scaling", "error")
def flat_parameters_on_typed_layers(saved: Any, path: Path) -> Any:
    return edited(saved("gemma3"), path, rope_parameters={"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6})


@case("lost_scaling", "error")
def a_scaling_on_a_model_without_rotation(saved: Any, path: Path) -> Any:
    return edited(saved("gpt2"), path, rope_scaling=YARN, rope_theta=1e4)


@case("lost_scaling", "error")
def two_factors(saved: Any, path: Path) -> Any:
    return rope(saved, path, {**YARN, "factor": 8.0}, rope_scaling=YARN, max_position_embeddings=128)


@case("lost_share", "error")
def a_share_under_another_name(saved: Any, path: Path) -> Any:
    return rope(saved, path, None, rotary_pct=0.5)


@case("original_length", "error")
def the_trained_length_beside_typed_layers(saved: Any, path: Path) -> Any:
    types = {
        "full_attention": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    lengths = {"original_max_position_embeddings": 32, "max_position_embeddings": 128}
    return edited(saved("gemma3"), path, rope_parameters=types, **lengths)


@case("original_length", "warning")
def two_trained_lengths(saved: Any, path: Path) -> Any:
    parameters = {**YARN, "rope_theta": 1e4}
    return rope(saved, path, parameters, original_max_position_embeddings=16, max_position_embeddings=128)


@case("original_length", "warning")
def the_trained_length_not_stated(saved: Any, path: Path) -> Any:
    return rope(saved, path, {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}, max_position_embeddings=128)


@case("longrope_lists", "error")
def a_list_too_short(saved: Any, path: Path) -> Any:
    return rope(
        saved, path, {**LISTS, "short_factor": [1.0] * 4, "long_factor": [1.0] * 3}, max_position_embeddings=128
    )


@case("longrope_lists", "error")
def a_list_with_a_zero(saved: Any, path: Path) -> Any:
    lists = {"short_factor": [1.0] * 4, "long_factor": [1.0, 0.0, 2.0, 4.0]}
    return rope(saved, path, {**LISTS, **lists}, max_position_embeddings=128)


@case("bad_numbers", "error")
def a_negative_factor(saved: Any, path: Path) -> Any:
    return rope(saved, path, {"rope_type": "linear", "factor": -3.0, "rope_theta": 1e4})


@case("bad_numbers", "error")
def a_factor_as_a_word(saved: Any, path: Path) -> Any:
    return rope(saved, path, {"rope_type": "linear", "factor": "4", "rope_theta": 1e4})


@case("bad_numbers", "error")
def a_factor_that_is_no_number(saved: Any, path: Path) -> Any:
    return rope(saved, path, {"rope_type": "linear", "factor": float("nan"), "rope_theta": 1e4})


@case("bad_numbers", "error")
def a_factor_beyond_measure(saved: Any, path: Path) -> Any:
    return rope(saved, path, {**YARN, "factor": 1e308, "rope_theta": 1e4})


@case("bad_numbers", "error")
def betas_exchanged(saved: Any, path: Path) -> Any:
    return rope(
        saved, path, {**YARN, "rope_theta": 1e4, "beta_fast": 1.0, "beta_slow": 32.0}, max_position_embeddings=128
    )


@case("unread_rope", "note")
def theta_on_a_bert(saved: Any, path: Path) -> Any:
    return edited(saved("bert"), path, rope_theta=5e5)


@case("older_readers", "note")
def theta_that_transformers_4_does_not_find(saved: Any, path: Path) -> Any:
    return rope(saved, path, {"rope_type": "default", "rope_theta": 5e5})


@case("stored_frequencies", "error")
def frequencies_among_the_weights(saved: Any, path: Path) -> Any:
    folder = edited(saved("llama"), path)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = 1.0 / (5e5 ** (torch.arange(0, 8, 2) / 8))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@case("evaluation_cuts", "warning")
def the_length_left_at_the_trained_one(saved: Any, path: Path) -> Any:
    return rope(saved, path, {**YARN, "rope_theta": 1e4})


@case("evaluation_cuts", "warning")
def dynamic_keeps_the_trained_length(saved: Any, path: Path) -> Any:
    return rope(saved, path, {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4})


@case("evaluation_cuts", "note")
def nothing_states_a_length(saved: Any, path: Path) -> Any:
    return saved("t5")


@case("promised_length", "warning")
def more_promised_than_scaled(saved: Any, path: Path) -> Any:
    return rope(saved, path, {**YARN, "rope_theta": 1e4}, max_position_embeddings=512)


@case("tokenizer_cuts", "warning")
def a_tokenizer_of_the_old_length(saved: Any, path: Path) -> Any:
    folder = rope(saved, path, {**YARN, "rope_theta": 1e4}, max_position_embeddings=128)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 32}))
    return folder


@case("tokenizer_cuts", "warning")
def a_tokenizer_that_lets_too_much_through(saved: Any, path: Path) -> Any:
    folder = edited(saved("bert"), path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 512}))
    return folder


@case("table_rows", "error")
def more_rows_promised_than_there_are(saved: Any, path: Path) -> Any:
    return edited(saved("gpt2"), path, n_positions=64)


@case("table_rows", "error")
def fewer_rows_promised_in_half_of_a_bart(saved: Any, path: Path) -> Any:
    return edited(saved("bart"), path, max_position_embeddings=16)


@case("relative_keys", "error")
def relative_keys_of_an_old_bert(saved: Any, path: Path) -> Any:
    return edited(saved("bert"), path, position_embedding_type="relative_key")


@case("record", "error")
def a_record_of_the_future(saved: Any, path: Path) -> Any:
    return record(path, version=99)


@case("record", "error")
def a_method_of_nobody(saved: Any, path: Path) -> Any:
    return record(path, stack=[{"method": "yarnn"}])


@case("record", "note")
def read_by_pospatch_alone(saved: Any, path: Path) -> Any:
    return record(path)


def record(path: Path, **changes: Any) -> Path:
    pospatch.apply(tiny.build("gpt2"), "t5_bias").save_pretrained(path / "patched")
    before = json.loads((path / "patched" / "config.json").read_text())["pospatch"]
    return edited(path / "patched", path / "edited", pospatch={**before, **changes})


@case("record_version", "warning")
def saved_by_a_newer_pospatch(saved: Any, path: Path) -> Any:
    pospatch.save_adapter(pospatch.apply(tiny.build("gpt2"), "rope"), path)
    content = json.loads((path / "pospatch_adapter.json").read_text())
    (path / "pospatch_adapter.json").write_text(json.dumps({**content, "pospatch": "99.0.0"}))
    return path


@case("record_differs", "error")
def a_factor_edited_beside_its_record(saved: Any, path: Path) -> Any:
    pospatch.apply(tiny.build("llama"), "yarn", factor=4).save_pretrained(path / "patched")
    return edited(path / "patched", path / "edited", rope_parameters={**YARN, "factor": 2.0, "rope_theta": 1e4})


@case("patch_tensors", "error")
def the_patchs_tensors_left_behind(saved: Any, path: Path) -> Any:
    folder = record(path)
    (folder / "pospatch.safetensors").unlink()
    return folder


@case("patch_tensors", "error")
def the_record_left_behind(saved: Any, path: Path) -> Any:
    folder = record(path)
    (folder / "config.json").write_text((saved("gpt2") / "config.json").read_text())
    return folder


@case("outside", "error")
def an_index_that_leaves_the_folder(saved: Any, path: Path) -> Any:
    folder = edited(saved("llama"), path)
    weights = dict.fromkeys(load_file(folder / "model.safetensors"), "../out/x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    (folder / "model.safetensors").unlink()
    return folder


@case("incomplete", "error")
def a_shard_that_is_missing(saved: Any, path: Path) -> Any:
    tiny.build("llama").save_pretrained(path, max_shard_size="20KB")
    next(path.glob("model-*.safetensors")).unlink()
    return path


@case("incomplete", "warning")
def no_weights(saved: Any, path: Path) -> Any:
    folder = edited(saved("llama"), path)
    (folder / "model.safetensors").unlink()
    return folder


@case("interrupted", "note")
def what_a_killed_save_leaves(saved: Any, path: Path) -> Any:
    folder = edited(saved("llama"), path)
    (folder / ".saving-x").mkdir()
    return folder


@case("pickled", "warning")
def a_pickle(saved: Any, path: Path) -> Any:
    folder = edited(saved("llama"), path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return folder


def lora(model: Any, path: Path, base: Any = None) -> Path:
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    with torch.no_grad():
        wrapped(input_ids=tiny.ids())  # by which a patch notices the adapter
    wrapped.save_pretrained(path)
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base and str(base)}))
    return path


@case("adapter_base", "warning")
def a_lora_of_a_scaled_base(saved: Any, path: Path) -> Any:
    base = rope(saved, path / "base", {**YARN, "rope_theta": 1e4}, max_position_embeddings=128)
    return lora(tf.AutoModelForCausalLM.from_pretrained(base), path / "lora", base)


@case("adapter_base", "warning")
def a_lora_of_a_patched_base(saved: Any, path: Path) -> Any:
    pospatch.apply(tiny.build("llama"), "alibi").save_pretrained(path / "base")
    return lora(tiny.build("llama"), path / "lora", path / "base")


@case("adapter_base", "note")
def a_lora_whose_base_is_not_at_hand(saved: Any, path: Path) -> Any:
    return lora(tiny.build("llama"), path, "nobody/nowhere")


@case("adapter_base", "warning")
def a_lora_with_a_longer_tokenizer(saved: Any, path: Path) -> Any:
    folder = lora(tiny.build("llama"), path, saved("llama"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 128}))
    return folder


@case("adapter_record", "note")
def a_lora_that_carries_its_patch(saved: Any, path: Path) -> Any:
    return lora(pospatch.apply(tiny.build("llama"), "yarn", factor=4), path, saved("llama"))


@case("adapter_record", "error")
def a_lora_with_its_patch_on_another_base(saved: Any, path: Path) -> Any:
    return lora(pospatch.apply(tiny.build("llama"), "yarn", factor=4), path, saved("qwen3"))


def gguf(path: Path, factors: Any = None, architecture: str = "llama", **keys: Any) -> Path:
    """The header of a GGUF with next to no weights."""
    import numpy as np
    from gguf import GGUFWriter

    path.mkdir(exist_ok=True)
    writer = GGUFWriter(path / "model.gguf", architecture)
    shape = {
        "context_length": 128,
        "embedding_length": 32,
        "block_count": 2,
        "feed_forward_length": 48,
        "vocab_size": 99,
    }
    heads = {"attention.head_count": 4, "attention.head_count_kv": 2, "rope.dimension_count": 8}
    for name, value in {**shape, **heads, **keys}.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(f"{architecture}.{name.replace('__', '.')}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(factors, dtype=np.float32))
    writer.add_tensor("token_embd.weight", np.zeros((99, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path / "model.gguf"


@case("gguf_scaling", "error")
def yarn_in_a_gguf(saved: Any, path: Path) -> Any:
    scaling = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
    return gguf(path, **scaling)


@case("gguf_factors", "error")
def llama_3_in_a_gguf(saved: Any, path: Path) -> Any:
    return gguf(path, factors=[1.0, 1.0, 4.0, 8.0])


@case("gguf_theta", "error")
def theta_that_the_family_does_not_take_over(saved: Any, path: Path) -> Any:
    return gguf(path, architecture="starcoder2", **{"rope.freq_base": 5e5})


@case("gguf_length", "warning")
def no_length_is_taken_over(saved: Any, path: Path) -> Any:
    return gguf(path, architecture="gpt2", context_length=4096)


@pytest.mark.parametrize("name", CASES)
def test_each_check_finds_its_case(saved: Any, tmp_path: Path, name: str) -> None:
    check, severity, make = CASES[name]
    seen = found(make(saved, tmp_path / "made"))
    assert seen.get(check) == severity, seen


def test_every_check_has_a_case() -> None:
    assert {check for check, _, _ in CASES.values()} == set(CHECKS)


def plain(theta: float) -> torch.Tensor:
    return 1.0 / (theta ** (torch.arange(0, 8, 2).float() / 8))


SPELLINGS: dict[
    str, tuple[dict[str, Any], torch.Tensor]
] = {  # fields of config.json, and the frequencies that they mean
    "v4": ({"rope_theta": 5e5}, plain(5e5)),
    "v4 scaled": ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}}, plain(5e5) / 4),
    "v4 scaled, new word": (
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        plain(5e5) / 4,
    ),
    "v5": ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, plain(5e5)),
    "v5, theta beside": (
        {"rope_theta": 5e5, "rope_parameters": {"rope_type": "linear", "factor": 4.0}},
        plain(5e5) / 4,
    ),
    "theta in rope_scaling": ({"rope_scaling": {"type": "linear", "factor": 4.0, "rope_theta": 5e5}}, plain(5e5) / 4),
    "both, theta in the loser": (
        {
            "rope_scaling": {"type": "linear", "factor": 4.0},
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        },
        plain(5e5) / 4,
    ),
    "both, scaling in the loser": (
        {
            "rope_scaling": {"rope_type": "default", "rope_theta": 5e5},
            "rope_parameters": {"rope_type": "linear", "factor": 4.0},
        },
        plain(5e5) / 4,
    ),
    "another name": ({"rotary_emb_base": 5e5}, plain(5e5)),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_it_says_misread_exactly_where_transformers_differs(saved: Any, tmp_path: Path, name: str) -> None:
    fields, meant = SPELLINGS[name]
    folder = edited(saved("llama"), tmp_path / "x", **{"rope_parameters": None, **fields})
    used = tf.AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb.inv_freq
    seen = pospatch.inspect(folder)
    assert isinstance(seen, Diagnosis)
    assert seen.ok == torch.allclose(used, meant, rtol=1e-6)
    if seen.ok:
        pospatch.from_pretrained(tf.AutoModelForCausalLM, folder)
    else:
        with pytest.raises(CheckpointError, match="would be misread"):
            pospatch.from_pretrained(tf.AutoModelForCausalLM, folder)


def test_from_pretrained_warns_once_and_not_of_notes(saved: Any, tmp_path: Path) -> None:
    folder = the_length_left_at_the_trained_one(saved, tmp_path / "x")
    with pytest.warns(CheckpointWarning, match="lm-eval cuts inputs at 32 tokens") as caught:
        pospatch.from_pretrained(tf.AutoModelForCausalLM, folder)
    assert len([item for item in caught if issubclass(item.category, CheckpointWarning)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        pospatch.from_pretrained(
            tf.AutoModelForCausalLM, theta_that_transformers_4_does_not_find(saved, tmp_path / "y")
        )
        config = tf.AutoConfig.from_pretrained(folder)
        pospatch.from_pretrained(tf.AutoModelForCausalLM, folder, config=config)  # stated by whoever loads


def test_from_pretrained_refuses_a_gguf_whose_scaling_is_dropped(saved: Any, tmp_path: Path) -> None:
    file = yarn_in_a_gguf(saved, tmp_path)
    with pytest.raises(CheckpointError, match=r"apply\(model, 'yarn', factor=4, original_max_position_embeddings=32\)"):
        pospatch.from_pretrained(tf.AutoModelForCausalLM, file.parent, gguf_file=file.name)
    assert found(file.parent) == found(file)  # the only one of its folder


def test_an_adapters_base_can_be_given(saved: Any, tmp_path: Path) -> None:
    folder = a_lora_whose_base_is_not_at_hand(saved, tmp_path)
    assert "adapter_base" not in found(folder, base=saved("llama"))
    with pytest.raises(CheckpointError, match="no folder"):
        pospatch.inspect(folder, base="/nowhere")


def test_weights_are_not_read(saved: Any, tmp_path: Path) -> None:
    folder = edited(saved("llama"), tmp_path / "x")
    file = folder / "model.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    whole = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(header)  # a hole where the weights were
        opened.truncate(whole)
    assert not pospatch.inspect(folder).findings  # type: ignore[attr-defined]


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        pospatch.inspect(tmp_path)
    with pytest.raises(CheckpointError, match="no folder"):
        pospatch.inspect("/nowhere/at/all")
    with pytest.raises(BadOptionType, match="revison"):
        pospatch.inspect(tmp_path, revison="main")
    with pytest.raises(BadOptionType, match="go with a path"):
        pospatch.inspect(tiny.build("llama"), revision="main")
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\xff" * 64)
    with pytest.raises(CheckpointError, match="no whole GGUF"):
        pospatch.inspect(tmp_path / "model.gguf")
    (tmp_path / "config.json").write_text("[" * 100000)
    with pytest.raises(CheckpointError, match="no JSON"):
        pospatch.inspect(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 16)
    with pytest.raises(CheckpointError, match="not a whole safetensors"):
        pospatch.inspect(tmp_path)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["yarn", "longrope", "linear", "dynamic", "../x", "default"]),
    st.lists(st.floats(), max_size=5),
    st.dictionaries(st.sampled_from(["rope_type", "factor", "rope_theta", "full_attention"]), st.floats(), max_size=3),
)
NAMES = ["rope_parameters", "rope_scaling", "rope_theta", "max_position_embeddings", "head_dim", "num_hidden_layers",
         "model_type", "architectures", "pospatch", "text_config", "num_attention_heads", "partial_rotary_factor",
         "original_max_position_embeddings", "vocab_size", "auto_map"]  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4), inside=st.dictionaries(
    st.sampled_from(["rope_type", "factor", "rope_theta", "short_factor", "original_max_position_embeddings"]), VALUES,
    max_size=3))  # fmt: skip
def test_no_config_brings_it_down(saved: Any, tmp_path: Path, changes: Any, inside: Any) -> None:
    config = json.loads((saved("llama") / "config.json").read_text())
    config = {**config, "rope_parameters": {**config["rope_parameters"], **inside}, **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with suppress(PospatchError):
        str(pospatch.inspect(tmp_path))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    places=st.lists(st.tuples(st.integers(0, 1400), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 2000),
)
def test_no_gguf_brings_it_down(tmp_path: Path, places: Any, cut: int) -> None:
    if not (tmp_path / "sound").exists():
        gguf(tmp_path / "sound", factors=[1.0, 1.0, 4.0, 8.0])
    content = bytearray((tmp_path / "sound" / "model.gguf").read_bytes())
    for at, byte in places:
        content[at % len(content)] = byte
    (tmp_path / "spoiled.gguf").write_bytes(content[: len(content) - cut])
    with suppress(PospatchError):
        str(pospatch.inspect(tmp_path / "spoiled.gguf"))
