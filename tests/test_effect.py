"""Studies: arms and seeds are trained and scored alike, what is finished is not done again, what cannot be is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pospatch.errors import BadOption, BadOptionType
from pospatch.training import effect as module
from pospatch.training.effect import Effect, Settings, effect, table
from pospatch.training.study import settings

RECIPES = Path(__file__).parent.parent / "recipes"
CONFIGS = sorted((RECIPES / "configs" / "effects").glob("*.yaml"))
GPT2 = {
    "model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 300, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip
COMMON = {
    "text": "topics", "train_tokens": 4096, "sequence_length": 32, "eval_last": 16, "tuning": "full", "use_cpu": True,
    "max_steps": 2, "per_device_train_batch_size": 2, "disable_tqdm": True,
}  # fmt: skip
ARMS: dict[str, Any] = {
    "as it is": {"max_steps": 0},
    "alibi, not tuned": {"patch": {"method": "alibi"}, "warm_start": True, "max_steps": 0},
    "rope": {"patch": "rope"},
    "rope, once": {"patch": "rope", "seeds": 1, "max_steps": 1},
}


def chosen(folder: Path, **changed: Any) -> Settings:
    """A study of seconds, as its file would say it."""
    content = {
        "output_dir": str(folder / "study"), "vocabulary": 300, "lengths": [32, 64], "scored": 16, "windows": 2, "seeds": 2,
        "common": COMMON, "base": {"model": GPT2}, "arms": ARMS, **changed,
    }  # fmt: skip
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return settings(Settings, ["--config", str(file)])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_file_is_valid_and_documented(path: Path, tmp_path: Path) -> None:
    study = Effect(settings(Settings, ["--config", str(path)]))
    assert study.folder == Path("runs") / path.stem
    study.folder = tmp_path
    study.common["tokenizer"] = "bytes"
    for name, options in {"base": study.base or {}, **study.arms}.items():
        study.common.setdefault("model", "a-folder")
        assert study._arguments(name, options, 0).training.seed == 0
    assert f"`configs/effects/{path.name}`" in (RECIPES / "README.md").read_text()


def test_a_study_scores_all_arms_alike_and_is_not_done_twice(tmp_path: Path, monkeypatch: Any) -> None:
    study = chosen(tmp_path)
    arms = effect(study)["arms"]
    assert {name: [one["seed"] for one in runs] for name, runs in arms.items()} == {
        "as it is": [0], "alibi, not tuned": [0], "rope": [0, 1], "rope, once": [0],
    }  # fmt: skip
    assert list(arms["as it is"][0]["perplexity"]) == ["32"]  # its table ends there
    assert list(arms["rope"][0]["perplexity"]) == ["32", "64"]
    assert arms["rope"][0]["perplexity"] != arms["rope"][1]["perplexity"]
    assert {one["text"]["sha256"] for runs in arms.values() for one in runs} == {arms["rope"][0]["of"]["text_sha256"]}
    assert {one["tokens_scored"] for runs in arms.values() for one in runs} == {32}
    folder = tmp_path / "study"
    assert json.loads((folder / "results.json").read_text())["arms"] == arms
    assert (folder / "table.md").read_text() == table([32, 64], arms)
    assert 5_000 < (folder / "picture.png").stat().st_size < 100_000
    monkeypatch.setattr(module, "run", None)  # nothing is trained any more
    assert effect(study)["arms"] == arms
    study.lengths = [24, 64]  # scored anew, not trained
    assert list(effect(study)["arms"]["rope"][0]["perplexity"]) == ["24", "64"]


def test_an_interrupted_study_ends_and_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    real, runs = module.run, iter([None, {"interrupted": 15}])
    monkeypatch.setattr(module, "run", lambda *args: next(runs) or real(*args))
    study = chosen(tmp_path, seeds=1)
    assert effect(study) == {"interrupted": 15}
    assert not (tmp_path / "study" / "results.json").exists()
    monkeypatch.setattr(module, "run", real)
    assert set(effect(study)["arms"]) == set(ARMS)


def test_finished_runs_of_other_settings_are_refused(tmp_path: Path) -> None:
    effect(chosen(tmp_path, seeds=1, arms={"rope": ARMS["rope"]}))
    with pytest.raises(BadOption, match="other settings"):
        effect(chosen(tmp_path, seeds=1, arms={"rope": {"patch": "alibi"}}))


@pytest.mark.parametrize(("name", "value"), [("arms", {"a": 3}), ("common", [1]), ("base", "text")])
def test_what_is_no_mapping_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(BadOptionType, match=name):
        Effect(chosen(tmp_path, **{name: value}))


def test_a_table_has_ratios_to_the_first_arm() -> None:
    arms = {
        "as it is": [{"perplexity": {"8": 10.0}, "trained_length": 8}],
        "rope": [{"perplexity": {"8": value, "16": 2 * value}} for value in (11.0, 9.0, 10.5)],
    }
    assert table([8, 16], arms).splitlines()[2:] == [
        "| as it is | 10.00 x1.00 | cannot read |",
        "| rope | 10.50 (9.00 to 11.00) x1.05 | 21.00 (18.00 to 22.00) x2.10 |",
    ]
