"""Saving and loading: every method on three hosts, by every advertised way, to the bit; refused where pospatch is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import pospatch
from pospatch import registry
from pospatch.checkpoint._save import is_patch_tensor
from pospatch.engine._trial import Trial
from pospatch.errors import CheckpointError
from tests import clean, tiny
from tests.test_api import assert_same, snapshot

AUTO = {"llama": "AutoModelForCausalLM", "gpt2": "AutoModelForCausalLM", "bert": "AutoModelForMaskedLM"}
TASK = {"llama": "text-generation", "gpt2": "text-generation", "bert": "fill-mask"}
PAIRS = [(host, method) for host in AUTO for method in registry.names()]
REMEDY = "pip install pospatch"


def stir(model: Any) -> None:
    """Random values in the patch's learned tensors: some start at zero, where a lost tensor would not show."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if is_patch_tensor(name):
                value.add_(torch.randn(value.shape, generator=generator) * 0.3)


def tokens(model: Any) -> torch.Tensor:
    """Beyond the trained length wherever no table bounds it."""
    bounded = next(row for row in pospatch.inspect(model).sites if row["site"] == "embedding")["now"] != "none"
    return tiny.ids(2, 28 if bounded else 48)


def support(reason: str) -> list[str]:
    """The methods that a refusal names as what should stand below."""
    said = reason.replace('"', "'")
    return ["learned", "rope"] if "'learned', 'rope'" in said else ["rope"] if "'rope'" in said else []


def patched(host: str, method: str) -> tuple[Any, str | None]:
    """The host with the method, on top of `rope` where it needs a rotary encoding; and why the method alone was refused."""
    model = tiny.build(host)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reason = Trial(model, None).reason(method)
    if reason is None:
        pospatch.apply(model, method, **tiny.options(method, model))
        stir(model)
        return model, None
    with pytest.raises(pospatch.PospatchError) as caught:
        pospatch.apply(model, method, **tiny.options(method, model))
    assert str(caught.value) == reason
    assert pospatch.inspect(model).method is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    below = support(reason)
    if not below:
        return None, reason
    pospatch.apply(model, below)
    pospatch.apply(model, method, **tiny.options(method, model))
    stir(model)
    return model, reason


@dataclass
class Saved:
    """One saved checkpoint and what it must answer; `path` is None where the pair is refused."""

    reason: str | None
    path: Path | None = None
    native: bool = False
    stack: tuple[str, ...] | list[str] = ()
    ids: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    model_class: Any = None


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Saved]:
    """Every pair, saved once."""
    folder = tmp_path_factory.mktemp("saved")
    found = {}
    for host, method in PAIRS:
        model, reason = patched(host, method)
        found[host, method] = Saved(reason)
        if model is None:
            continue
        path, ids = folder / f"{host}-{method}", tokens(model)
        model.save_pretrained(path)
        with torch.no_grad():
            logits = tiny.logits(model, ids)
        seen = pospatch.inspect(model)
        stack = [entry["method"] for entry in seen.stack]
        found[host, method] = Saved(reason, path, seen.native, stack, ids, logits, type(model))
    return found


def jobs(saved: dict[tuple[str, str], Saved]) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    pairs = [pair for pair in saved if saved[pair].path is not None]
    asked = [
        {
            "path": str(saved[pair].path),
            "classes": [AUTO[pair[0]], saved[pair].model_class.__name__],
            "ids": saved[pair].ids.tolist(),  # type: ignore[union-attr]
        }
        for pair in pairs
    ]
    return pairs, asked


@pytest.fixture(scope="module")
def without(saved: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """What a fresh process without pospatch got from each."""
    pairs, asked = jobs(saved)
    return dict(zip(pairs, clean.run(asked, tmp_path_factory.mktemp("clean"), "without"), strict=True))


@pytest.fixture(scope="module")
def within(saved: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """What a fresh process that imported pospatch got from each, through AutoModel* and through the class."""
    pairs, plain = jobs(saved)
    asked = [{**job, "classes": job["classes"][1:], "load": "pospatch"} for job in plain]
    asked += [{**job, "classes": job["classes"][:1]} for job in plain]
    results = clean.run(asked, tmp_path_factory.mktemp("clean"), "with")
    return {
        pair: {**ours, "auto": next(iter(plain.values()))}
        for pair, ours, plain in zip(pairs, results[: len(pairs)], results[len(pairs) :], strict=True)
    }


def vit() -> Any:
    """A tiny model of images, for the methods that place patches."""
    config = tf.ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    return tf.ViTForImageClassification(config).eval()


def test_every_method_that_no_text_takes_is_saved_on_images(saved: Any, tmp_path: Path) -> None:
    """In this process, in a fresh one, and refused where pospatch is missing, as the others."""
    left = {method for _, method in PAIRS} - {method for (_, method), item in saved.items() if item.path is not None}
    assert len(left) >= 3
    shape = [2, 3, 16, 16]
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    asked, wanted = [], []
    for method in sorted(left):
        model = vit()
        pospatch.apply(model, method, **tiny.options(method, model))
        stir(model)
        assert not pospatch.inspect(model).native
        model.save_pretrained(tmp_path / method)
        asked.append({"path": str(tmp_path / method), "classes": ["AutoModelForImageClassification"], "pixels": shape})
        with torch.no_grad():
            wanted.append(model(pixel_values=pixels).logits)
            loaded = tf.AutoModelForImageClassification.from_pretrained(tmp_path / method)
            assert torch.equal(loaded(pixel_values=pixels).logits, wanted[-1])
    for got, want in zip(clean.run(asked, tmp_path, "with"), wanted, strict=True):
        assert torch.equal(got["AutoModelForImageClassification"], want)
    for got in clean.run(asked, tmp_path, "without"):
        assert REMEDY in got["AutoModelForImageClassification"]["message"]


def test_every_pair_is_saved_or_refused_with_a_reason(saved: Any) -> None:
    assert sum(item.path is not None for item in saved.values()) > 70
    assert all(item.path is not None or item.reason for item in saved.values())


@pytest.mark.parametrize(("host", "method"), PAIRS)
def test_loads_in_this_process_to_the_bit(saved: Any, host: str, method: str) -> None:
    item = saved[host, method]
    if item.path is None:
        assert item.reason
        return
    auto = getattr(tf, AUTO[host])
    for model in (auto.from_pretrained(item.path), pospatch.from_pretrained(item.model_class, item.path)):
        assert type(model) is item.model_class
        assert not model.training
        with torch.no_grad():
            assert torch.equal(tiny.logits(model, item.ids), item.logits)
        slots = {registry.method_class(name).slot for name in item.stack}
        own = item.native and slots & {"embedding", "positions"}  # a longer table is the model's own from then on
        assert [entry["method"] for entry in pospatch.inspect(model).stack] == ([] if own else item.stack)


@pytest.mark.parametrize(("host", "method"), PAIRS)
def test_loads_in_a_fresh_process_to_the_bit(saved: Any, within: Any, host: str, method: str) -> None:
    item = saved[host, method]
    if item.path is None:
        assert item.reason
        return
    for way, got in within[host, method].items():
        assert torch.is_tensor(got), (way, got)
        assert torch.equal(got, item.logits), way


@pytest.mark.parametrize(("host", "method"), PAIRS)
def test_without_pospatch_native_forms_equal_and_others_raise(saved: Any, without: Any, host: str, method: str) -> None:
    item = saved[host, method]
    if item.path is None:
        assert item.reason
        return
    for way, got in without[host, method].items():
        if item.native:
            assert torch.is_tensor(got), (way, got)
            assert torch.equal(got, item.logits), way
        else:
            assert not torch.is_tensor(got), way
            assert REMEDY in got["message"], (way, got)


@pytest.mark.parametrize("method", registry.names())
def test_a_patch_of_some_layers_is_never_saved_as_one_of_all(tmp_path: Path, method: str) -> None:
    """What transformers' own class makes of the checkpoint, without our help: the same logits or nothing."""
    model = tiny.build("llama")
    options = {**tiny.options(method, model), "layers": [0]}
    try:
        pospatch.apply(model, method, **options)
    except pospatch.PospatchError:
        assert pospatch.inspect(model).method is None
        return
    stir(model)
    model.save_pretrained(tmp_path)
    ids = tiny.ids(1, 40)
    if pospatch.inspect(model).native:
        with torch.no_grad():
            assert torch.equal(tiny.logits(tf.LlamaForCausalLM.from_pretrained(tmp_path), ids), tiny.logits(model, ids))
    else:
        with pytest.raises(Exception, match=REMEDY):
            tf.LlamaForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("host", AUTO)
@pytest.mark.parametrize("method", ["t5_bias", "learned"])
def test_heads_come_and_go(tmp_path: Path, host: str, method: str) -> None:
    """The learned tensors find their place where a checkpoint with a head is loaded without, and the other way round."""
    model, _ = patched(host, method)
    ids, body = tokens(model), model.base_model
    model.save_pretrained(tmp_path / "head")
    bare = tf.AutoModel.from_pretrained(tmp_path / "head")
    with torch.no_grad():
        assert torch.equal(bare(input_ids=ids)[0], body(input_ids=ids)[0])
        bare.save_pretrained(tmp_path / "bare")
        classes = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "bare", num_labels=3)
        assert torch.equal(classes.base_model(input_ids=ids)[0], body(input_ids=ids)[0])
        assert classes.config.num_labels == 3


def vocabulary(folder: Path) -> None:
    """A tokenizer of the tiny models' vocabulary, one word a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<mask>": 3} | {f"w{i}": i for i in range(4, tiny.VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "mask_token": "<mask>"}
    tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


@pytest.mark.parametrize("host", AUTO)
@pytest.mark.parametrize("method", ["rope", "alibi", "learned"])
def test_pipelines_load_it(tmp_path: Path, host: str, method: str) -> None:
    model, _ = patched(host, method)
    model.save_pretrained(tmp_path)
    vocabulary(tmp_path)
    pipe = tf.pipeline(TASK[host], model=str(tmp_path))
    assert pospatch.inspect(pipe.model).stack or method == "learned"
    ids = torch.arange(5, 12)[None]
    text = " ".join(f"w{i}" for i in range(5, 12))
    if TASK[host] == "fill-mask":
        ids = torch.cat((ids, torch.tensor([[3]])), dim=1)
        with torch.no_grad():
            best = model(input_ids=ids).logits[0, -1].argmax().item()
        assert pipe(f"{text} <mask>")[0]["token"] == best
    else:
        wanted = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].tolist()
        got = pipe(text, max_new_tokens=6, do_sample=False, return_tensors=True)
        assert got[0]["generated_token_ids"][ids.shape[1] :] == wanted


def train(model: Any, steps: int = 3) -> None:
    """A few steps on random tokens, all trainable parameters."""
    parameters = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    model.train()
    for step in range(steps):
        ids = tiny.ids(2, 24, seed=step)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


CHAINS = {  # what stands first, what comes on top after training
    "llama": ("rope", ("yarn", {"factor": 2})),
    "gpt2": ("rope", ("yarn", {"factor": 2})),
    "bert": ("t5_bias", ("logn", {})),
}


@pytest.mark.parametrize("host", AUTO)
def test_patch_train_save_load_patch_further_save_load(tmp_path: Path, host: str) -> None:
    first, (second, options) = CHAINS[host]
    auto = getattr(tf, AUTO[host])
    model = pospatch.apply(tiny.build(host), first)
    train(model)
    model.save_pretrained(tmp_path / "one")
    loaded = pospatch.from_pretrained(auto, tmp_path / "one")
    ids = tiny.ids(2, 48)
    with torch.no_grad():
        assert torch.equal(tiny.logits(loaded, ids), tiny.logits(model, ids))
    for item in (model, loaded):  # the one in memory and the one from disk go the same way
        pospatch.apply(item, second, **options)
    with torch.no_grad():
        assert torch.equal(tiny.logits(loaded, ids), tiny.logits(model, ids))
    train(loaded)
    loaded.save_pretrained(tmp_path / "two")
    again = pospatch.from_pretrained(auto, tmp_path / "two")
    assert [item["method"] for item in pospatch.inspect(again).stack] == [first, second]
    with torch.no_grad():
        assert torch.equal(tiny.logits(again, ids), tiny.logits(loaded, ids))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), loaded.parameters(), strict=True))
    pospatch.remove(again)
    base = tiny.build(host)
    base.load_state_dict(again.state_dict())
    short = tiny.ids(2, 28)
    with torch.no_grad():
        assert torch.equal(tiny.logits(again, short), tiny.logits(base, short))


def test_removed_after_loading_natively(tmp_path: Path) -> None:
    """yarn is saved as plain transformers' yarn; what was there before is in the record."""
    base = tiny.build("llama")
    ids = tiny.ids(2, 48)
    with torch.no_grad():
        wanted = tiny.logits(base, ids)
    pospatch.apply(base, "yarn", factor=4).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rope_parameters"]["rope_type"] == "yarn"
    assert config["max_position_embeddings"] == 4 * tiny.LENGTH
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path)  # plain transformers
    pospatch.remove(loaded)
    with torch.no_grad():
        assert torch.equal(tiny.logits(loaded, ids), wanted)
    assert loaded.config.max_position_embeddings == tiny.LENGTH
    assert not hasattr(loaded.config, "pospatch")
    with pytest.raises(pospatch.PospatchError):
        pospatch.remove(loaded)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every method whose result on a llama is native, saved; by name."""
    folder, found = tmp_path_factory.mktemp("native"), {}
    for method in registry.names():
        model = patched("llama", method)[0]
        if model is not None and pospatch.inspect(model).native:
            model.save_pretrained(folder / method)
            found[method] = folder / method
    return found


def test_a_refused_call_leaves_a_natively_loaded_model_as_it_was_loaded(native: Any, tmp_path: Path) -> None:
    """Also where the refusal comes late, after the patch in its config was recognised; and the model can be patched then."""
    pospatch.save_adapter(pospatch.apply(tiny.build("llama"), "alibi"), tmp_path)
    assert len(native) > 10
    for method, path in native.items():
        load = partial(tf.AutoModelForCausalLM.from_pretrained, path)
        carries = bool(pospatch.inspect(load()).stack)
        model, refusals = load(), 0
        before = snapshot(model)
        calls = [partial(pospatch.load_adapter, path=tmp_path)] if carries else []
        calls += [
            partial(pospatch.apply, method="logn", layers=[99]),
            partial(pospatch.apply, method="learned", length=4),
        ]
        calls += [partial(pospatch.apply, method=name, **tiny.options(name, model)) for name in ("alibi", "yarn")]
        for call in calls:
            try:
                call(model)
            except pospatch.PospatchError:
                assert_same(snapshot(model), before, f"{method}, {call}")
                refusals += 1
            else:
                model = load()
        assert refusals >= (2 if carries else 1), method
        pospatch.apply(model, "logn")
        with torch.no_grad():
            assert not torch.equal(tiny.logits(model, tiny.ids(2, 48)), tiny.logits(load(), tiny.ids(2, 48)))


def test_a_config_that_was_edited_after_the_patch_is_not_overruled(native: Any, tmp_path: Path) -> None:
    """The record says factor 2, the config another one now: neither is taken for the other."""
    for name, change in (("rope_parameters", {"factor": 7.0}), ("max_position_embeddings", 7 * tiny.LENGTH)):
        path = shutil.copytree(native["linear"], tmp_path / name)
        config = json.loads((path / "config.json").read_text())
        config[name] = {**config[name], **change} if isinstance(change, dict) else change
        (path / "config.json").write_text(json.dumps(config))
        model = tf.AutoModelForCausalLM.from_pretrained(path)
        before = snapshot(model)
        for call in (pospatch.inspect, pospatch.remove, lambda model: pospatch.apply(model, "logn")):
            with pytest.raises(CheckpointError, match=name):
                call(model)
            assert_same(snapshot(model), before)
        with pytest.raises(CheckpointError, match=name):
            pospatch.from_pretrained(tf.AutoModelForCausalLM, path)
        del model.config.pospatch
        assert pospatch.inspect(pospatch.apply(model, "logn")).method == "logn"


def test_what_from_pretrained_is_given() -> None:
    for given in ((), ("x",), (tf.AutoModelForCausalLM,), ("x", "y"), (tf.AutoModel, 3)):
        with pytest.raises(TypeError):
            pospatch.from_pretrained(*given)


def test_transformers_learns_our_model_type_whatever_is_imported_first() -> None:
    """Its registry may be looked at before it is imported, and its import may start inside one of ours."""
    script = (
        "import transformers, pospatch, importlib.util;"
        "importlib.util.find_spec('transformers.models.auto.modeling_auto');"
        "from pospatch.checkpoint import _record, _config;"
        "assert _config.MODEL_TYPE in transformers.CONFIG_MAPPING;"
        "assert _config.PospatchConfig in transformers.AutoModel._model_mapping"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=clean.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("method", "given"), [("alibi", {}), ("t5_bias", {}), ("learned", {"length": 48})])
@torch.no_grad()
def test_buffers_that_count_positions_are_saved_as_the_base_has_them(
    tmp_path: Path, method: str, given: dict[str, Any]
) -> None:
    """CLAP's text model keeps position_ids in its checkpoints; where its table is cleared they are longer in memory."""
    config = tf.ClapTextConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=34,
    )
    model = tiny.spread(tf.ClapTextModel(config))
    assert "embeddings.position_ids" in model.state_dict()
    pospatch.apply(model, method, **given)
    wanted = model(tiny.ids()).last_hidden_state
    model.save_pretrained(tmp_path)
    loaded = pospatch.from_pretrained(tmp_path, auto_class=tf.ClapTextModel).eval()
    assert torch.equal(loaded(tiny.ids()).last_hidden_state, wanted)
    assert {n: v.shape for n, v in loaded.state_dict().items()} == {n: v.shape for n, v in model.state_dict().items()}
