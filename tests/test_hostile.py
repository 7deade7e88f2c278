"""Checkpoints that nobody should trust: a named error before memory is taken or code is run, or what was asked for."""

from __future__ import annotations

import copy
import json
import math
import pickle
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
import transformers as tf
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import pospatch
from pospatch import registry
from pospatch.checkpoint._numbers import check_counts
from pospatch.checkpoint._record import methods_of
from pospatch.engine._native import FIELDS
from pospatch.errors import CheckpointError, PospatchError
from tests import tiny
from tests.test_checkpoint import AUTO, patched, stir

ROOM = 400  # MiB that refusing, or loading a tiny model, may take at its peak; what is asked for in these tests is far more
SECONDS = 20  # of CPU time
LONGEST = 3000  # letters of a message


@contextmanager
def bounded(seconds: float = SECONDS) -> Iterator[None]:
    """The block may take little memory and time."""
    peak, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - begun < seconds
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024 < ROOM


def names(method: Any) -> list[str]:
    """The options of a method."""
    return [item.name for item in fields(method)]


def record_of(method: str, model: Any) -> dict[str, Any]:
    """The record of a method as `save_pretrained` writes it, with every option that has a value said."""
    built = registry.build(method, **tiny.options(method, model))
    every = {name: getattr(built, name) for name in names(type(built))}
    said = {**{name: value for name, value in every.items() if value is not None}, **built.options()}
    base = {"max_position_embeddings": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    record = {
        "version": 1,
        "native": False,
        "base": base,
        "stack": [{"method": method, **said}],
        "tensors": ["a.pospatch.b"],
    }
    return json.loads(json.dumps(record))


@pytest.fixture(scope="module")
def records() -> dict[str, dict[str, Any]]:
    model = tiny.build("llama")
    return {method: record_of(method, model) for method in registry.names()}


NUMBERS = st.sampled_from(
    [
        math.nan,
        math.inf,
        -math.inf,
        1e308,
        -1e308,
        1e-320,
        -4.0,
        0.0,
        0.5,
        3.0,
        2**53 + 1,
        10**9,
        10**18,
        10**400,
        -(10**400),
        0,
        -1,
        7,
    ]
)
WORDS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "4",
            "yarn",
            "../../etc/passwd",
            "__class__",
            "_base",
            "os.system",
            "pospatch.methods.yarn",
            "а" * 5000,
            "every:²",
            "every:" + "9" * 5000,
            "all",
            "\x00",
            "decoder",
        ]
    ),
)
DEEP = st.integers(2, 400).map(lambda depth: json.loads("[" * depth + "]" * depth))
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    WORDS,
    DEEP,
    st.lists(st.one_of(NUMBERS, WORDS, st.none()), max_size=4),
    st.sampled_from([200, 10**4]).map(lambda length: [0.5] * length),
    st.dictionaries(WORDS, NUMBERS, max_size=3),
)
OPTIONS = sorted({name for method in registry.names() for name in names(registry.method_class(method))})
KEYS = st.one_of(
    WORDS,
    st.sampled_from(
        [*OPTIONS, "version", "stack", "method", "native", "part", "base", "tensors", "name", "self", "cls"]
    ),
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in JSON data."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [(value, key) for key, _ in inside]
    return found + [place for _, item in list(inside) for place in places(item)] if not isinstance(value, str) else []


def mutate(data: st.DataObject, record: dict[str, Any]) -> None:
    """One change somewhere: another value, one more entry, one less, an entry doubled, or nested deeper."""
    container, key = data.draw(st.sampled_from(places(record)), label="where")
    kind = data.draw(st.sampled_from(["value", "value", "value", "add", "drop", "double", "nest"]), label="what")
    if kind == "value":
        container[key] = data.draw(ANYTHING, label="value")
    elif kind == "drop":
        del container[key]
    elif kind == "nest":
        container[key] = [container[key]] if data.draw(st.booleans()) else {"stack": container[key]}
    elif isinstance(container, list):
        container.insert(0, copy.deepcopy(container[key]) if kind == "double" else data.draw(ANYTHING, label="value"))
    else:
        container[data.draw(KEYS, label="key")] = (
            copy.deepcopy(container[key]) if kind == "double" else data.draw(ANYTHING)
        )


@hypothesis.settings(
    max_examples=300, deadline=None, suppress_health_check=list(hypothesis.HealthCheck), derandomize=True
)
@hypothesis.given(data=st.data())
def test_a_mutated_record_is_refused_or_says_what_it_means(records: Any, data: st.DataObject) -> None:
    record = copy.deepcopy(records[data.draw(st.sampled_from(registry.names()), label="method")])
    for _ in range(data.draw(st.integers(1, 3), label="changes")):
        if places(record):
            mutate(data, record)
    stack, refusal = None, ""
    with bounded(2):
        try:
            stack = methods_of(record)
        except PospatchError as error:
            refusal = str(error)
    assert (stack is None) == bool(refusal)
    assert len(refusal) < LONGEST
    if stack is not None:
        again = {**record, "stack": [{"method": method.name, **method.options()} for method in stack]}
        assert methods_of(json.loads(json.dumps(again))) == stack


def test_every_unmutated_record_is_read(records: Any) -> None:
    for method, record in records.items():
        assert method in [item.name for item in methods_of(record)]


class Adapters:
    """A saved patch of each method on the first host that takes it, made when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[str, tuple[str, Path] | None] = {}

    def __getitem__(self, method: str) -> tuple[str, Path] | None:
        """(host, folder), or None where it needs images, or what tests/matrix.py puts below it."""
        if method not in self.made:
            self.made[method] = None
            for host in AUTO:
                if (model := patched(host, method)[0]) is not None:
                    pospatch.save_adapter(model, self.folder / method)
                    self.made[method] = (host, self.folder / method)
                    break
        return self.made[method]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    return Adapters(tmp_path_factory.mktemp("adapters"))


@hypothesis.settings(
    max_examples=50, deadline=None, suppress_health_check=list(hypothesis.HealthCheck), derandomize=True
)
@hypothesis.given(data=st.data())
def test_a_mutated_adapter_is_refused_or_loads(
    adapters: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """From the file to the patched model; a refusal leaves the base as it was."""
    found = adapters[data.draw(st.sampled_from(registry.names()), label="method")]
    hypothesis.assume(found is not None)
    host, path = found
    folder = shutil.copytree(path, tmp_path_factory.mktemp("mutated") / "adapter")
    record = json.loads((path / "pospatch_adapter.json").read_text())
    if data.draw(st.integers(0, 3), label="in the options") and record["stack"]:
        mutate(data, record["stack"][-1])
    else:
        mutate(data, record)
    (folder / "pospatch_adapter.json").write_text(json.dumps(record))
    bare = tiny.build(host)
    before = {name: value.clone() for name, value in bare.state_dict().items()}
    refusal = ""
    with bounded():
        try:
            pospatch.load_adapter(bare, folder)
        except PospatchError as error:
            refusal = str(error)
    stands = [item["method"] for item in pospatch.inspect(bare).stack]
    assert stands == ([] if refusal else [item["method"] for item in record["stack"]])
    assert len(refusal) < LONGEST
    if refusal:
        assert list(bare.state_dict()) == list(before)
        assert all(torch.equal(value, before[name]) for name, value in bare.state_dict().items())
    shutil.rmtree(folder.parent)


class Bomb:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


Change = Callable[[dict[str, Any]], Any]


def in_stack(**options: Any) -> Change:
    return lambda record: record["stack"][0].update(options)


def whole(**entries: Any) -> Change:
    return lambda record: record.update(entries)


def in_base(**entries: Any) -> Change:
    return lambda record: record["base_config"].update(entries)


RECORDS: dict[str, tuple[Change, str]] = {
    "a version to come": (whole(version=99), "version 99"),
    "a version that is no number": (whole(version="1"), "version '1'"),
    "a version that only equals one": (whole(version=True), "version True"),
    "an unknown method": (in_stack(method="yran"), "unknown method 'yran'"),
    "a path for a method": (in_stack(method="../../os"), "unknown method"),
    "an unknown option": (in_stack(facter=2), "facter"),
    "an option named as an argument of ours": (in_stack(name="x"), "unknown option 'name'"),
    "an unknown entry": (whole(run="me"), "'run'"),
    "code in the base": (in_base(auto_map={"AutoModel": "evil.Model"}), ""),
    "a part that is not there": (whole(part="tail"), "part='tail'"),
    "tensors that are no names": (whole(tensors=[1]), "tensors"),
    "no tensors named": (whole(tensors=[]), "names no tensors"),
    "a table of a million": (in_stack(max_distance=10**6), "asks for tensors of"),
    "too large a table for an option": (in_stack(max_distance=10**9), "max_distance=1000000000"),
    "a base of 10^9 positions": (whole(base={"max_position_embeddings": 10**9}), "describes a model of|table_rows"),
    "a base of 10^9 layers": (in_base(n_layer=10**9), "n_layer=1000000000"),
    "a base of another width": (in_base(n_embd=64), "has shape|table_rows"),
    "a base of no family": (in_base(model_type="os"), "is no config"),
    "a base of text": (in_base(n_embd="much"), "base_config|describes no model"),
    "heads that do not divide": (in_base(n_head=5), "describes no model|has shape"),
    "two methods in one place": (lambda record: record["stack"].append({"method": "alibi"}), "'shaw' holds it"),
    "one method twice": (lambda record: record["stack"].append(dict(record["stack"][0])), "twice"),
    "very many methods": (lambda record: record["stack"].extend([{"method": "logn"}] * 10**5), "stacks 100001"),
    "a base that is not of this host": (whole(base={"rope_parameters": 3}), "rope_parameters=3"),
    "a length below zero": (whole(base={"max_position_embeddings": -1}), "max_position_embeddings=-1"),
    "encoder layers without number": (in_base(encoder_layers=10**9), "encoder_layers=1000000000"),
    "depths without number": (in_base(vision_config={"depths": [2, 10**9]}), "1000000002 modules"),
    "lists of layers": (in_base(text_config={"num_hidden_layers": 10**9}), "num_hidden_layers=1000000000"),
    **{
        f"another length, {name}": (whole(base={name: 10**15}), f"{name}=1000000000000000")
        for name in FIELDS
        if name != "rope_parameters"
    },
    **{
        f"a rotary {name} of {value!r:.20} in {where}": (
            change(rope_parameters={"rope_type": "linear", name: value}),
            name,
        )
        for name in ("factor", "rope_theta")
        for value in (-3, 1e308, math.nan, 10**400)
        for where, change in (("the config", in_base), ("the base", lambda **entries: whole(base=entries)))
    },
    **{
        f"a distance of {value!r:.20}": (in_stack(max_distance=value), "max_distance")
        for value in (math.nan, 1e308, -4, "4", 10**400, [4], True)
    },
}


DOCTOR = "would be misread|is no JSON"  # `pospatch.from_pretrained` asks it first


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = pospatch.apply(tiny.build("gpt2"), "shaw")
    stir(model)
    path = tmp_path_factory.mktemp("hostile") / "model"
    model.save_pretrained(path, max_shard_size="20KB")
    return path


@pytest.mark.parametrize("name", RECORDS)
def test_a_hostile_config_is_refused_by_every_loader(checkpoint: Path, tmp_path: Path, name: str) -> None:
    change, message = RECORDS[name]
    path = shutil.copytree(checkpoint, tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    change(config["pospatch"])
    (path / "config.json").write_text(json.dumps(config))
    for load in (
        lambda: tf.AutoModelForCausalLM.from_pretrained(path),
        lambda: pospatch.from_pretrained(tf.GPT2LMHeadModel, path),
    ):
        with bounded():
            if not message:  # never asked for, so it loads
                assert not hasattr(load().config, "auto_map")
                continue
            with pytest.raises(PospatchError, match=f"{message}|{DOCTOR}") as caught:
                load()
            assert len(str(caught.value)) < LONGEST


def pickled(path: Path) -> str:
    (path / "pospatch.safetensors").write_bytes(pickle.dumps(Bomb(path / "mark")))
    return "not a whole safetensors"


def pickled_shard(path: Path) -> str:
    next(path.glob("model-*")).write_bytes(pickle.dumps(Bomb(path / "mark")))
    return "not a whole safetensors"


def pickled_weights_alone(path: Path) -> str:
    for file in path.glob("model*"):
        file.unlink()
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(path / "mark")))
    return r"no model\.safetensors"


def shard_elsewhere(path: Path) -> str:
    index = json.loads((path / "model.safetensors.index.json").read_text())
    first = next(iter(index["weight_map"]))
    shutil.copy(path / index["weight_map"][first], path.parent / "outside.safetensors")
    index["weight_map"][first] = "../outside.safetensors"
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return "not in its own folder"


def shard_missing(path: Path) -> str:
    next(path.glob("model-*")).unlink()
    return "incomplete"


def index_of_nonsense(path: Path) -> str:
    (path / "model.safetensors.index.json").write_text('{"weight_map": [' * 9)
    return "no index of shards"


def changed(path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(path / "pospatch.safetensors")
    first = next(iter(tensors))
    save_file({**tensors, first: change(tensors[first])}, path / "pospatch.safetensors")


def patch_of_another_shape(path: Path) -> str:
    changed(path, lambda value: value[:1].contiguous())
    return "has shape"


def patch_of_integers(path: Path) -> str:
    changed(path, lambda value: value.to(torch.int8))
    return "has dtype I8"


def patch_cut_short(path: Path) -> str:
    file = path / "pospatch.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    return "not a whole safetensors"


def patch_missing(path: Path) -> str:
    (path / "pospatch.safetensors").unlink()
    return "incomplete"


def shard_of_another_shape(path: Path) -> str:
    file = next(file for file in path.glob("model-*") if "transformer.wpe.weight" in load_file(file))
    tensors = load_file(file)
    save_file({**tensors, "transformer.wpe.weight": torch.zeros(7, 32)}, file, metadata={"format": "pt"})
    return "has shape"


FILES = [
    pickled,
    pickled_shard,
    pickled_weights_alone,
    shard_elsewhere,
    shard_missing,
    index_of_nonsense,
    patch_of_another_shape,
    patch_of_integers,
    patch_cut_short,
    patch_missing,
    shard_of_another_shape,
]


@pytest.mark.parametrize("damage", FILES)
def test_hostile_files_are_refused_by_every_loader(checkpoint: Path, tmp_path: Path, damage: Any) -> None:
    path = shutil.copytree(checkpoint, tmp_path / "model")
    message = damage(path)
    for load in (
        lambda: tf.AutoModelForCausalLM.from_pretrained(path),
        lambda: pospatch.from_pretrained(tf.GPT2LMHeadModel, path),
    ):
        with bounded(), pytest.raises(CheckpointError, match=f"{message}|{DOCTOR}"):
            load()
    assert not (path / "mark").exists()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10**5,
        '{"a":' * 10**5,
        "{",
        "[]",
        "null",
        '{"stack": 1e999}',
        '{"version": ' + "9" * 5000 + "}",
        "\xff\xfe",
    ],
)
def test_a_record_that_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "pospatch_adapter.json").write_text(text)
    (tmp_path / "adapter_config.json").write_text(text)
    bare = tiny.build("llama")
    with bounded(), pytest.raises(CheckpointError):
        pospatch.load_adapter(bare, tmp_path)
    with bounded(), pytest.raises((CheckpointError, PospatchError)):
        pospatch.load_peft(pospatch.apply(bare, "alibi"), tmp_path)


def test_a_class_that_the_family_has_not_is_refused_by_transformers(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        tf.AutoModelForMaskedLM.from_pretrained(checkpoint)


def test_lists_of_layers_are_not_made_of_a_count(tmp_path: Path) -> None:
    """Config classes make one entry for each layer, before anything of theirs can be compared with the weights."""
    pospatch.apply(tiny.build("gemma3"), "alibi").save_pretrained(tmp_path / "own")
    tiny.build("gemma3").save_pretrained(tmp_path / "plain")
    for folder, inside in (("own", "base_config"), ("plain", None)):
        file = tmp_path / folder / "config.json"
        config = json.loads(file.read_text())
        read = config["pospatch"][inside] if inside else config
        read.pop("layer_types", None)
        read["num_hidden_layers"] = 10**9
        file.write_text(json.dumps(config))
        with bounded(), pytest.raises(CheckpointError, match="num_hidden_layers=1000000000"):
            pospatch.from_pretrained(tf.AutoModelForCausalLM, tmp_path / folder)
        with bounded():
            seen: Any = pospatch.inspect(tmp_path / folder)
        assert any("num_hidden_layers=1000000000" in str(item) for item in seen.findings)


def test_the_place_of_a_layer_is_no_count(tmp_path: Path) -> None:
    check_counts({"vision_feature_layer": -2, "mlp_only_layers": list(range(200)), "depths": [2, 2, 18, 2]}, "x")


def test_a_native_record_that_asks_for_very_much_is_refused() -> None:
    """Adopted from what plain transformers loaded; GPT-J has a row of sines for each position that the record promises."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 8, "vocab_size": 99}
    model = tf.GPTJForCausalLM(tf.GPTJConfig(**sizes, bos_token_id=1, eos_token_id=1))
    stack = [{"method": "linear", "factor": 1e6}]
    model.config.pospatch = {"version": 1, "native": True, "base": {"max_position_embeddings": 64}, "stack": stack}
    with bounded(), pytest.raises(PospatchError, match="would prepare 64000000 positions"):
        pospatch.inspect(model)
    assert model.config.pospatch["stack"] == stack  # as it was loaded
