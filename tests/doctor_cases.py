"""Checkpoints that are wrong in one way each, with the check that must find it and how severe it is."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import pospatch
from pospatch.checkpoint._publish import replacing
from tests import tiny

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LISTS = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}


def edited(source: Path, target: Path, **changes: Any) -> Path:
    """A copy with fields of config.json set, or taken out where they are None."""
    shutil.copytree(source, target)
    config = {**json.loads((target / "config.json").read_text()), **changes}
    (target / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )
    return target


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
    process = os.fork()
    if process == 0:
        with replacing(folder):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(process, 0)
    assert len(list(folder.parent.glob(".*"))) == 1
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
