"""The doctor: every check finds its case and nothing in sound checkpoints; where it says misread, transformers does differ."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from huggingface_hub.errors import HfHubHTTPError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pospatch
from pospatch.checkpoint.doctor import Diagnosis
from pospatch.checkpoint.doctor._evidence import Evidence, gather
from pospatch.checkpoint.doctor._files import Repository
from pospatch.checkpoint.doctor.checks import CHECKS
from pospatch.errors import BadOption, BadOptionType, CheckpointError, CheckpointWarning, PospatchError
from tests import tiny
from tests.doctor_cases import (
    CASES,
    a_lora_whose_base_is_not_at_hand,
    edited,
    gguf,
    the_length_left_at_the_trained_one,
    theta_that_transformers_4_does_not_find,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny host, saved once."""
    root = tmp_path_factory.mktemp("saved")

    def folder(host: str) -> Path:
        if not (root / host).exists():
            tiny.build(host).save_pretrained(root / host)
        return root / host

    return folder


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


@pytest.mark.parametrize("kind", ["peft", "own"])
def test_an_adapters_patch_is_shown_and_missed(tmp_path: Path, kind: str) -> None:
    from peft import LoraConfig, get_peft_model

    model = pospatch.apply(tiny.build("llama"), "t5_bias")
    if kind == "peft":
        get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(tmp_path)
    else:
        pospatch.save_adapter(model, tmp_path)
    assert "patch_tensors" not in found(tmp_path)
    assert pospatch.inspect(tmp_path).weights
    for file in tmp_path.glob("*pospatch*.safetensors"):
        file.unlink()
    assert found(tmp_path)["patch_tensors"] == "error"


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


def test_from_pretrained_refuses_a_gguf_that_no_method_gives(saved: Any, tmp_path: Path) -> None:
    both = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
    file = gguf(tmp_path, factors=[1.0, 1.0, 4.0, 8.0], **both)
    assert found(file.parent) == found(file)  # the only one of its folder
    with pytest.raises(CheckpointError, match="no counterpart among the methods"):
        pospatch.from_pretrained(tf.AutoModelForCausalLM, file.parent, gguf_file=file.name)


def test_a_family_of_its_own_code_loads_where_that_is_trusted(saved: Any, tmp_path: Path) -> None:
    folder = edited(
        saved("llama"),
        tmp_path / "x",
        model_type="own_family",
        architectures=["OwnModel"],
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    )
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own_family'\n\n\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    loaded = pospatch.from_pretrained(tf.AutoModelForCausalLM, folder, trust_remote_code=True)
    assert type(loaded).__name__ == "OwnModel"
    with pytest.raises(ValueError, match="trust_remote_code"):
        pospatch.from_pretrained(tf.AutoModelForCausalLM, folder)


def test_an_adapters_base_can_be_given(saved: Any, tmp_path: Path) -> None:
    folder = a_lora_whose_base_is_not_at_hand(saved, tmp_path)
    assert "adapter_base" not in found(folder, base=saved("llama"))
    with pytest.raises(CheckpointError, match="no folder"):
        pospatch.inspect(folder, base="/nowhere")


def test_a_base_is_a_model_that_the_adapter_may_name(
    saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = a_lora_whose_base_is_not_at_hand(saved, tmp_path / "adapter")
    content = json.loads((folder / "adapter_config.json").read_text())

    def named(base: Any) -> Evidence | None:
        (folder / "adapter_config.json").write_text(json.dumps({**content, "base_model_name_or_path": str(base)}))
        return gather(folder).base

    assert named(folder) is None  # itself
    assert named(saved("llama")) is not None
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        pospatch.inspect(folder, base=folder)
    monkeypatch.setattr("pospatch.checkpoint.doctor._evidence.Folder", Repository)  # as if it had been downloaded
    assert named(saved("llama")) is None


def test_a_subfolder_that_is_not_there(saved: Any) -> None:
    with pytest.raises(CheckpointError, match="no folder 'nope'"):
        pospatch.inspect(saved("llama"), subfolder="nope")


def test_weights_are_not_read(saved: Any, tmp_path: Path) -> None:
    folder = edited(saved("llama"), tmp_path / "x")
    file = folder / "model.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    whole = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(header)  # a hole where the weights were
        opened.truncate(whole)
    assert not pospatch.inspect(folder).findings  # type: ignore[attr-defined]


def test_a_repository_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def nothing(*args: Any, **kwargs: Any) -> Any:
        raise HfHubHTTPError.__bases__[0]("no such host")

    monkeypatch.setattr(HfApi, "list_repo_files", nothing)
    with pytest.raises(CheckpointError, match="no such host"):
        pospatch.inspect("someone/somewhere")


def test_a_model_without_a_network_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads would wait for the Hub again for each file that may be there."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    asked: list[float] = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setattr(_http.time, "sleep", asked.append)
    with pytest.raises(OSError, match="cannot be reached, and someone/somewhere is not on this machine"):
        pospatch.from_pretrained(tf.AutoModel, "someone/somewhere")
    assert asked == [1, 2, 4, 8, 8]  # one file's


def test_what_is_no_checkpoint(saved: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        pospatch.inspect(tmp_path)
    with pytest.raises(CheckpointError, match="no folder"):
        pospatch.inspect("/nowhere/at/all")
    with pytest.raises(BadOptionType, match="revison"):
        pospatch.inspect(tmp_path, revison="main")
    for options in ({"revision": "main"}, {"base": tmp_path}):
        with pytest.raises(BadOption, match="would be ignored"):
            pospatch.inspect(saved("llama"), **options)
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


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3),
    inside=st.dictionaries(st.sampled_from(["rope_type", "factor", "rope_theta", "short_factor"]), VALUES, max_size=3),
    recorded=st.dictionaries(
        st.sampled_from(["version", "native", "base", "stack", "tensors", "part"]), VALUES, max_size=2
    ),
    option=VALUES,
)
def test_no_config_brings_it_down(
    saved: Any, tmp_path: Path, changes: Any, inside: Any, recorded: Any, option: Any
) -> None:
    config = json.loads((saved("llama") / "config.json").read_text())
    native = {
        "version": 1,
        "native": True,
        "base": {"max_position_embeddings": 32, "rope_parameters": config["rope_parameters"]},
    }
    record = {**native, "stack": [{"method": "yarn", "factor": option}], **recorded}
    config = {**config, "rope_parameters": {**config["rope_parameters"], **inside}, "pospatch": record, **changes}
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
