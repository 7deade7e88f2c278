"""The demo: all its steps on a tiny model under the real one's name; the real quick form is marked slow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import pospatch
from pospatch import demo
from pospatch.assets import _smollm2
from pospatch.demo import _finetune, _round_trip
from pospatch.demo._picture import picture
from pospatch.errors import AssetError, PospatchError
from pospatch.evaluate import Result
from pospatch.training.arguments import parse

PLANS = {"quick": demo.QUICK, "full": demo.FULL}
LIMITS = {"quick": 5, "full": 25}  # minutes, as the help promises
TINY = replace(
    demo.QUICK, length=256, bucket=64, key_length=400, steps=2, sequence_length=64, base_length=300, target_length=400
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds a tiny llama in the place of SmolLM2, and a short text in that of the Bible."""
    folder = tmp_path / "cache"
    (folder / "texts").mkdir(parents=True)
    words = "".join(f"And it came to pass in the year {number} that he spake. " for number in range(6000))
    (folder / "texts" / "kjv.txt").write_text(words)
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, vocab_size=259,
    )  # fmt: skip
    tf.LlamaForCausalLM(config).save_pretrained(folder / _smollm2._NAME)
    tf.ByT5Tokenizer(extra_ids=0).save_pretrained(folder / _smollm2._NAME)
    monkeypatch.setenv("POSPATCH_CACHE", str(folder))
    return folder


def test_every_step_on_a_tiny_model(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "QUICK", TINY)
    folder = demo.run(quick=True, output=tmp_path / "out")
    said = capsys.readouterr().out
    assert said.startswith("About 5 minutes on 2 idle cores")
    report = json.loads((folder / "demo.json").read_text())
    assert [each["label"] for each in report["perplexity"]] == ["as it is", "yarn x2"]
    assert [each["label"] for each in report["passkey"]] == ["as it is", "yarn x2"]
    assert report["inspect"]["trained_length"] == 128
    tuned = report["finetune"]
    assert tuned["steps"] == TINY.steps
    assert tuned["command"].startswith("accelerate launch --config_file")
    for when in ("before", "after"):
        for name, length in (("base", 300), ("target", 400)):
            assert tuned[when][name]["length"] == length
            assert f"{tuned[when][name]['perplexity']:.2f} {when}" in said
    assert tuned["before"] != tuned["after"]
    assert (folder / "finetune" / "adapter").is_dir()
    assert "after training, target length 400" in (folder / "finetune.log").read_text()
    assert report["round_trip"]["largest_difference"] == 0.0
    assert (folder / "demo.png").stat().st_size > 20_000
    config = tf.AutoConfig.from_pretrained(folder / "smollm2-yarn")
    assert config.rope_parameters["rope_type"] == "yarn"


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_the_recipe_takes_the_demos_flags(plan: demo.Plan, tmp_path: Path) -> None:
    words = _finetune.command(_finetune.recipes(), plan, tmp_path)
    arguments = parse(words[words.index("--config") :])
    assert arguments.model.stack == [("yarn", {"factor": 2.0})]
    assert arguments.tune.tuning == "lora"
    assert arguments.training.max_steps == plan.steps
    assert arguments.data.target_length == plan.target_length


def test_the_full_demo_fine_tunes_as_the_yaml_file_says(tmp_path: Path) -> None:
    words = _finetune.command(_finetune.recipes(), demo.FULL, tmp_path)
    config = words[words.index("--config") :]
    changed = {"output_dir", "disable_tqdm", "logging_dir"}
    ours, files = (
        {name: value for name, value in parse(argv).config.items() if name not in changed}
        for argv in (config, config[:2])
    )
    assert ours == files


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_possible_and_within_its_promise(name: str) -> None:
    plan = PLANS[name]
    assert plan.minutes < LIMITS[name]
    assert {method for method, _ in plan.methods} >= set(plan.key_methods)
    assert plan.length > 8192 < plan.key_length
    for method, options in plan.methods:
        assert pospatch.registry.method_class(method).needs == "nothing"
        pospatch.registry.build(method, **options)


def test_recipes_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel has them inside the package; a folder `recipes` of someone else beside it is not taken for ours."""
    beside = _finetune.recipes()
    assert beside == Path(pospatch.__file__).parent.parent / "recipes"
    package = tmp_path / "site-packages" / "pospatch"
    (package.parent / "recipes").mkdir(parents=True)
    monkeypatch.setattr(pospatch, "__file__", str(package / "__init__.py"))
    with pytest.raises(AssetError, match="install pospatch anew"):
        _finetune.recipes()
    (package / "_recipes").parent.mkdir()
    (package / "_recipes").symlink_to(beside)
    assert _finetune.recipes() == package / "_recipes"


def test_the_wheel_is_told_to_carry_the_recipes() -> None:
    import tomllib

    root = Path(pospatch.__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"] == {"recipes": "pospatch/_recipes"}


def test_a_failing_run_shows_the_end_of_its_log(tmp_path: Path) -> None:
    import sys

    said = "import sys; print('before training', flush=True); print('no such thing', file=sys.stderr); "
    words = [sys.executable, "-c", said + "assert not 'the launcher'"]
    moved: list[int] = []
    with pytest.raises(PospatchError, match="no such thing") as caught:
        _finetune._follow(words, tmp_path / "log", lambda: moved.append(1))
    assert "the launcher" not in str(caught.value)
    assert moved == [1]
    with pytest.raises(PospatchError, match="the plain load ended with 1"):
        _round_trip.run_child([sys.executable, "-c", "raise SystemExit(1)"], "the plain load")


def test_an_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(AssetError, match="--output"):
        demo.run(quick=True, output=tmp_path / "file")


def _key(label: str, said: list[str]) -> Result:
    rows = [
        {"depth": depth, "rate": float(word == "12345"), "answers": [{"key": "12345", "said": word, "right": word == "12345"}]}
        for depth, word in zip((0.1, 0.9), said, strict=True)
    ]  # fmt: skip
    return Result(
        task="passkey",
        protocol="forced",
        label=label,
        model={},
        options={},
        lengths=[9000],
        rows=rows,
        n_scored_tokens=2,
    )


def _curve(label: str, values: list[float | None]) -> Result:
    rows = [
        {"length": 4096, "start": 1024 * i, "end": 1024 * (i + 1), "perplexity": value}
        for i, value in enumerate(values)
    ]
    model: dict[str, Any] = {"name": "tiny", "positions": {"trained_length": 2048}}
    return Result(
        task="perplexity", protocol="by_position", label=label, model=model, options={}, lengths=[4096], rows=rows,
        n_scored_tokens=4095,
    )  # fmt: skip


def test_the_picture_shows_the_numbers() -> None:
    found = {"base": {"length": 2048, "perplexity": 23.04}, "target": {"length": 4096, "perplexity": None}}
    sheet = picture(
        [_curve("as it is", [5, 5, 50, None]), _curve("yarn x2", [5, 5, 5, 5])],
        [_key("as it is", ["\n\n", "the grass is green"]), _key("yarn x2", ["12345", "12345"])],
        {"before": found, "after": found, "steps": 12},
    )
    curves, keys, bars = sheet.axes
    assert [text.get_text() for text in curves.get_legend().get_texts()] == ["as it is", "yarn x2"]
    assert [text.get_text() for text in keys.texts] == [
        "12345\nsaid nothing", "12345\nsaid 'the grass…'", "12345\nread", "12345\nread",
    ]  # fmt: skip
    assert "23.0" in [text.get_text() for text in bars.texts]


@pytest.mark.slow
def test_the_quick_demo_end_to_end(tmp_path: Path) -> None:
    """On the real model: reading past its range fails as it is and does not with yarn."""
    report = json.loads((demo.run(quick=True, output=tmp_path) / "demo.json").read_text())
    as_it_is, yarn = (each["rows"][-1]["perplexity"] for each in report["perplexity"])
    assert as_it_is > 5 * yarn
    assert [each["summary"]["retrieved"]["rate"] for each in report["passkey"]] == [0.0, 1.0]
    assert report["round_trip"]["largest_difference"] < 1e-4
