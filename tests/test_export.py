"""Native export: plain transformers, without pospatch, gives the same logits; what has no exact form is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file

import pospatch
from pospatch import registry
from pospatch.checkpoint._check import compare
from pospatch.checkpoint._spectrum import as_longrope
from pospatch.engine._geometry import trained_length
from pospatch.engine._trial import Trial
from pospatch.errors import CheckpointError, UnsupportedHost
from pospatch.methods._base import Rotary
from tests import clean, tiny
from tests.test_checkpoint import support, vocabulary

HOSTS = ("llama", "gpt2", "bert", "opt", "roberta", "gpt_neox", "gemma3")
PAIRS = [(host, method) for host in HOSTS for method in registry.names()]
EXTRA: dict[str, tuple[str, Any]] = {  # pairs of a host and a stack that the registry alone does not make
    "wavelength": ("llama", [("yarn", {"factor": 4, "interpolation": "wavelength"})]),
    "typed layers": ("gemma3", [("yarn", {"factor": 4, "interpolation": "wavelength"})]),
    "half a head": ("gpt_neox", [("yarn", {"factor": 4, "interpolation": "wavelength"})]),
    "half a head of gpt2": ("gpt2", [("rope", {"partial_rotary_factor": 0.5, "rope_theta": 500.0})]),
    "half a head of bert": ("bert", [("rope", {"partial_rotary_factor": 0.5})]),
    "nope in one layer": ("llama", [("nope", {"layers": [1]})]),
    "placed and scaled": ("llama", ["rope", ("llama3", {"factor": 2})]),
}
TARGETS = {"gpt2": "gpt_neox", "opt": "gpt_neox", "bert": "roformer", "roberta": "roformer"}


@dataclass
class Exported:
    """One export, or why there is none."""

    refusal: str | None = None
    written: Any = None
    ids: torch.Tensor | None = None
    logits: torch.Tensor | None = None


def make(host: str, stack: list[Any], path: Path) -> Exported:
    model = pospatch.apply(tiny.build(host), stack)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = tiny.ids(2, 28)
    with torch.no_grad():
        logits = tiny.logits(model, ids)
    try:
        written = pospatch.export(model, path, verify=False)
    except UnsupportedHost as error:
        assert not list(path.glob("*")) if path.exists() else True
        return Exported(str(error))
    with torch.no_grad():
        assert torch.equal(tiny.logits(model, ids), logits)  # exporting changes nothing here
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return Exported(None, written, ids, logits)


def stack_of(host: str, method: str) -> list[Any] | None:
    """The method with options to try it, on `rope` where it needs one; None where the pair is refused."""
    model = tiny.build(host)
    item = (method, tiny.options(method, model))
    reason = Trial(model, None).reason(method)
    if reason is None:
        return [item]
    below = support(reason)
    return [*below, item] if below else None


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Exported | None]:
    folder = tmp_path_factory.mktemp("exported")
    found: dict[Any, Exported | None] = {}
    for pair in PAIRS:
        stack = stack_of(*pair)
        found[pair] = None if stack is None else make(pair[0], stack, folder / "-".join(pair))
    for name, (host, stack) in EXTRA.items():
        found[name] = make(host, stack, folder / name)
    return found


@pytest.fixture(scope="module")
def answers(exported: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """What a process without pospatch gets from each."""
    done = {key: item for key, item in exported.items() if item is not None and item.refusal is None}
    jobs = [
        {"path": item.written.path, "classes": [item.written.model_class], "ids": item.ids.tolist()}
        for item in done.values()
    ]
    results = clean.run(jobs, tmp_path_factory.mktemp("clean"), "without")
    return {key: next(iter(result.values())) for key, result in zip(done, results, strict=True)}


def check(item: Exported, answer: Any) -> None:
    assert torch.is_tensor(answer), answer
    assert (answer - item.logits).abs().max() <= 1e-5 * item.logits.std()  # type: ignore[union-attr]
    config = json.loads((Path(item.written.path) / "config.json").read_text())
    assert "pospatch" not in json.dumps(config)
    names = {name for file in Path(item.written.path).glob("*.safetensors") for name in load_file(file)}
    assert not any("pospatch" in name for name in names)


@pytest.mark.parametrize(("host", "method"), PAIRS)
def test_exports_are_exact_or_refused(exported: Any, answers: Any, host: str, method: str) -> None:
    item = exported[host, method]
    if item is None:
        assert stack_of(host, method) is None
        return
    cls = registry.method_class(method)
    if item.refusal is None:
        check(item, answers[host, method])
        return
    assert "nearest" in item.refusal
    assert any(name in item.refusal for name in (method, "learned"))  # what stands below may be what is in the way
    static = issubclass(cls, Rotary) and cls.spectral and not cls.from_options(_options(host, method)).dynamic
    assert not static, f"every fixed spectrum has an exact form: {item.refusal}"
    assert cls.slot != "embedding" or host in ("llama", "gpt_neox", "gemma3")


def _options(host: str, method: str) -> dict[str, Any]:
    return tiny.options(method, tiny.build(host))


@pytest.mark.parametrize("name", EXTRA)
def test_more_exports_are_exact(exported: Any, answers: Any, name: str) -> None:
    assert exported[name].refusal is None, exported[name].refusal
    check(exported[name], answers[name])


@pytest.mark.parametrize("host", TARGETS)
def test_rope_makes_another_architecture(exported: Any, host: str) -> None:
    written = exported[host, "rope"].written
    assert written.config["model_type"] == TARGETS[host]
    assert json.loads((Path(written.path) / "config.json").read_text())["model_type"] == TARGETS[host]


def test_it_says_what_it_wrote_and_proves_it(tmp_path: Path) -> None:
    model = pospatch.apply(tiny.build("llama"), "yarn", factor=4, interpolation="wavelength")
    written = pospatch.export(model, tmp_path)
    assert written.difference == 0.0
    text = str(written)
    for word in ("LlamaForCausalLM", "longrope", "max_position_embeddings = 128", "equal to the bit"):
        assert word in text
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("long_factor", "short_factor"):
        config["rope_parameters"][name][3] *= 1.01
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="answers otherwise"):  # the proof would notice a wrong frequency
        compare(model, tmp_path, "LlamaForCausalLM", 128)


def test_a_form_that_is_not_exact_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pospatch.checkpoint import export as module

    old = pospatch.apply(tiny.build("llama"), "linear", factor=2)
    pospatch.export(old, tmp_path, verify=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fails(*args: Any) -> None:
        raise CheckpointError("made to fail")

    monkeypatch.setattr(module, "compare", fails)
    with pytest.raises(CheckpointError, match="made to fail"):
        pospatch.export(pospatch.apply(tiny.build("gpt2"), "rope"), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("host", ["gpt2", "bert", "roberta", "bart", "opt"])
def test_a_longer_table_moves_lengths_buffers_and_tokenizer(host: str, tmp_path: Path) -> None:
    vocabulary(tmp_path / "tokenizer")
    tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path / "tokenizer", model_max_length=tiny.LENGTH)
    model = pospatch.apply(tiny.build(host), "learned", factor=3)
    pospatch.export(model, tmp_path / "out", tokenizer=tokenizer, verify=False)
    assert tokenizer.model_max_length == tiny.LENGTH
    assert tf.AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 3 * tiny.LENGTH
    loaded = type(model).from_pretrained(tmp_path / "out")
    extra = 2 if host == "roberta" else 0  # roberta counts the rows before position 0
    assert trained_length(loaded.config) == 3 * tiny.LENGTH + extra
    ids = tiny.ids(1, 3 * tiny.LENGTH)
    with torch.no_grad():
        assert torch.equal(tiny.logits(loaded, ids), tiny.logits(model, ids))


def test_tied_and_sharded_and_bf16(tmp_path: Path) -> None:
    model = pospatch.apply(tiny.build("gpt2").to(torch.bfloat16), "rope")
    pospatch.export(model, tmp_path, verify=False, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded = tf.GPTNeoXForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert loaded.lm_head.weight is loaded.gpt_neox.embed_in.weight
    assert loaded.generation_config.eos_token_id == model.generation_config.eos_token_id
    ids = tiny.ids(1, 24)
    with torch.no_grad():
        gap = (tiny.logits(loaded, ids) - tiny.logits(model, ids)).float().abs().max()
    assert gap < 0.05 * tiny.logits(model, ids).float().std()


def test_unpatched_and_adapters(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    written = pospatch.export(tiny.build("llama"), tmp_path, verify=False)
    assert written.form == "as it is, unpatched"
    model = pospatch.apply(tiny.build("llama"), "yarn", factor=2)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    with pytest.raises(UnsupportedHost, match="merge_and_unload"):
        pospatch.export(wrapped, tmp_path)
    merged = wrapped.merge_and_unload()
    pospatch.export(merged, tmp_path, verify=False)
    ids = tiny.ids(1, 48)
    with torch.no_grad():
        assert torch.equal(
            tiny.logits(tf.AutoModelForCausalLM.from_pretrained(tmp_path), ids), tiny.logits(merged, ids)
        )


def test_near_architectures_are_refused_with_the_reason(tmp_path: Path) -> None:
    config = tf.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=32, vocab_size=99, scale_attn_by_inverse_layer_idx=True
    )
    model = pospatch.apply(tf.GPT2LMHeadModel(config).eval(), "rope")
    with pytest.raises(UnsupportedHost, match="scale_attn_by_inverse_layer_idx=True"):
        pospatch.export(model, tmp_path)
    small = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 99,
    }
    model = pospatch.apply(tf.BertForSequenceClassification(tf.BertConfig(**small)).eval(), "rope")
    with pytest.raises(UnsupportedHost, match="no pooler"):
        pospatch.export(model, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", range(20))
def test_any_spectrum_is_said_to_the_last_bit_that_float32_can_hit(seed: int) -> None:
    from pospatch.geometry import Geometry, Rotation

    draw = torch.Generator().manual_seed(seed)
    theta = float(10 ** (3 + 4 * torch.rand((), generator=draw)))
    periods = theta ** (torch.arange(0, 64, 2).float() / 64)
    inv_freq = 1.0 / ((1 + 7 * torch.rand(32, generator=draw)) * periods)
    inv_freq[torch.rand(32, generator=draw) < 0.1] = 0.0
    rotation = Rotation(dim=64, theta=theta, inv_freq=inv_freq, rope_type="custom")
    geometry = Geometry(heads=2, head_dim=64, width=128, length=32, rotation=rotation)
    config = tf.LlamaConfig(hidden_size=128, num_attention_heads=2)
    native = as_longrope(inv_freq, 1.25, geometry)
    assert json.loads(json.dumps(native, allow_nan=False)) == native
    config.rope_parameters = native
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    got, amplitude = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"))
    assert amplitude == 1.25
    assert ((got - inv_freq).abs() <= inv_freq * 2**-23 + 4e-39).all()  # 0 where the period is 1 is a denormal number
