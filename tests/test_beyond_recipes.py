"""The recipes beyond text: their files are valid and documented, small runs end; the whole runs are marked slow."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from pospatch.errors import BadOption, BadOptionType, UnknownName
from pospatch.training import study
from pospatch.training.study import Curve, bars, draw, fit, settings, spread, stacks

RECIPES = Path(__file__).parent.parent / "recipes"
CONFIGS = sorted((RECIPES / "configs" / "beyond").glob("*.yaml"))
SMALL: dict[str, list[str]] = {  # flags that make a run small enough for every day
    "vision": ["--seeds", "1", "--steps", "2", "--steps_after", "2", "--scored", "20", "--width", "16"],
    "trajectories": [
        *("--seeds", "1", "--steps", "2", "--steps_after", "2", "--episodes", "12", "--evaluated", "2", "--width", "16"),
        *("--trained_length", "40", "--factors", "1", "2"),
    ],
}  # fmt: skip


def recipe(name: str) -> ModuleType:
    """A script of the folder as a module."""
    known = f"recipes_{name}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, RECIPES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[known] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[known])
    return sys.modules[known]


def script_of(config: Path) -> str:
    """Which script a file is for: the only one that has all its names."""
    names = set(yaml.safe_load(config.read_text()))
    fitting = [name for name in ("vision", "trajectories", "speech") if names <= set(fields_of(name))]
    assert len(fitting) == 1, (config.name, fitting)
    return fitting[0]


def fields_of(name: str) -> list[str]:
    return list(recipe(name).Settings.__dataclass_fields__)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_file_is_valid_and_documented(config: Path) -> None:
    chosen = settings(recipe(script_of(config)).Settings, ["--config", str(config)])
    assert Path(chosen.output_dir) == Path("runs") / config.stem
    assert stacks(chosen.patches if hasattr(chosen, "patches") else chosen.patch)
    assert f"`configs/beyond/{config.name}`" in (RECIPES / "README.md").read_text()


@pytest.mark.parametrize("config", [path for path in CONFIGS if script_of(path) in SMALL], ids=lambda path: path.stem)
def test_a_small_run_ends_with_results_and_a_picture(config: Path, tmp_path: Path, monkeypatch: Any) -> None:
    name = script_of(config)
    module = recipe(name)
    monkeypatch.setattr(
        sys, "argv", [name, "--config", str(config), "--output_dir", str(tmp_path / "run"), *SMALL[name]]
    )
    module.main()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    named = set(yaml.safe_load(config.read_text())["patches"])
    assert named in [set(value) for value in results.values() if isinstance(value, dict)]
    assert 5_000 < (tmp_path / "run" / "picture.png").stat().st_size < 100_000


def test_bars_stand_at_their_names(tmp_path: Path) -> None:
    bars(tmp_path / "a.png", ["as it is", "patched"], {"words wrong, %": [3.0, 41.5], "seconds": [0.6, 0.1]})
    assert 2_000 < (tmp_path / "a.png").stat().st_size < 100_000


def test_settings_come_from_file_and_flags_and_say_what_is_wrong(tmp_path: Path) -> None:
    kind = recipe("vision").Settings
    file = tmp_path / "a.yaml"
    file.write_text("output_dir: runs/a\npatches: {x: {method: rope_2d}}\nfactors: [1.0, 3.0]\nsteps: 7\n")
    chosen = settings(kind, ["--config", str(file), "--steps", "9"])
    assert (chosen.steps, chosen.factors, chosen.seeds) == (9, [1.0, 3.0], 3)
    assert stacks(chosen.patches) == {"x": [("rope_2d", {})]}
    with pytest.raises(UnknownName, match="Did you mean"):
        settings(kind, ["--config", str(file), "--step", "9"])
    with pytest.raises(BadOptionType, match="patches"):
        settings(kind, ["--output_dir", "a"])
    with pytest.raises(BadOption, match="no such file"):
        settings(kind, ["--config", "nowhere.yaml"])
    for word in ("[]", "3", "{}", "{a: 3}"):
        with pytest.raises(BadOptionType, match="patch"):
            stacks(word)


@pytest.mark.parametrize("name", ["vision", "trajectories", "speech"])
def test_a_script_ends_with_one_line_where_it_cannot_go_on(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    module = recipe(name)
    monkeypatch.setattr(sys, "argv", [name])
    with pytest.raises(SystemExit, match=r"^BadOptionType: the following arguments are required: --output_dir"):
        module.main()
    given = ["--patch", "x", "--part", "encoder"] if name == "speech" else ["--patches", "[]"]
    monkeypatch.setattr(sys, "argv", [name, "--output_dir", str(tmp_path / "run"), *given])

    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "stacks" if name != "speech" else "Ear", interrupted)
    with pytest.raises(SystemExit, match=r"^interrupted; nothing is written before the end"):
        module.main()
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_interrupted_in_training_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    module, config = recipe("vision"), RECIPES / "configs" / "beyond" / "digits.yaml"
    own, calls = module.cross_entropy, []

    def loss(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:  # in the training after the first patch
            raise KeyboardInterrupt
        return own(*args)

    monkeypatch.setattr(module, "cross_entropy", loss)
    flags = ["--config", str(config), "--output_dir", str(tmp_path / "run"), *SMALL["vision"]]
    monkeypatch.setattr(sys, "argv", ["vision", *flags])
    with pytest.raises(SystemExit, match=r"^interrupted; nothing is written before the end"):
        module.main()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["vision", "trajectories"])
def test_training_and_scoring_move_a_bar(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Every bar is moved as often as it has steps, or driving ended early."""
    bars: list[list[Any]] = []

    @contextmanager
    def bar(title: str, total: int, enabled: bool) -> Iterator[Callable[[], None]]:
        assert enabled
        bars.append(one := [title, total, 0])

        def advance() -> None:
            one[2] += 1

        yield advance

    monkeypatch.setattr(study, "bar", bar)
    config = {"vision": "digits", "trajectories": "cartpole"}[name]
    flags = ["--config", str(RECIPES / "configs" / "beyond" / f"{config}.yaml"), "--output_dir", str(tmp_path)]
    recipe(name).study(settings(recipe(name).Settings, [*flags, *SMALL[name]]))
    titles = [title for title, _, _ in bars]
    assert "seed 0, training" in titles
    assert any("scoring" in title or "driving" in title for title in titles)
    assert all(0 < moved <= total if "driving" in title else moved == total for title, total, moved in bars)


def test_the_loop_learns_and_leaves_frozen_tensors_alone() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    model[0].requires_grad_(False)
    kept = model[0].weight.clone()
    x = torch.randn(64, 3)

    def loss(running: torch.nn.Module) -> torch.Tensor:
        return (running(x)[:, 0] - x[:, 0]).square().mean()

    before = float(loss(model).detach())
    ended = fit(model, loss, steps=200, rate=1e-2)
    assert ended["loss"] < 0.2 * before
    assert torch.equal(model[0].weight, kept)
    assert not model.training


def test_spreads_and_pictures(tmp_path: Path) -> None:
    assert spread([[1, 5], [3, 4], [2, 9]]) == ((1, 2, 3), (4, 5, 9))
    curve = Curve("a", (1.0, 2.0), spread([[1, 5], [3, 4]]))
    draw(tmp_path / "a.png", [curve], title="t", across="x", up="y", mark=1.0)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_pages_are_cut_out_of_digits() -> None:
    """A patch belongs to the digit that its pixels come from, and counts where all of that digit is on the page."""
    vision = recipe("vision")
    pixels = torch.arange(10).float()[:, None, None].expand(-1, 8, 8).contiguous()  # a digit is its name in every pixel
    page, label, counts = vision.Pages(pixels, torch.arange(10))(30, 16, torch.Generator().manual_seed(0))
    assert page.shape == (30, 1, 16, 16)
    assert torch.equal(page[:, 0, ::2, ::2].long(), label)
    assert torch.equal(page[:, 0, 1::2, 1::2].long(), label)
    assert set(counts.sum((1, 2)).tolist()) <= {16, 32, 64}
    train, held_out = vision.digits(0)
    assert len(train.names) + len(held_out.names) == 1797


def test_words_that_differ_are_counted() -> None:
    speech = recipe("speech")
    assert speech.word_errors("Press 1, now!", "press 1 now") == (0, 3)
    assert speech.word_errors("press two", "please press 1 now") == (3, 4)
    assert speech.word_errors("", "a b") == (2, 2)
    assert speech.error_rate(["a b", "c"], ["a", "c d e"]) == 75.0
    sound = torch.ones(16000)
    joined = speech.rows([(sound, " a."), (2 * sound, " b.")], 3.1, 4, 0)
    assert all(len(samples) == 48000 and set(text.split()) == {"a.", "b."} for samples, text in joined)


@pytest.mark.slow
def test_whisper_keeps_its_words_in_a_short_window_after_training(tmp_path: Path, monkeypatch: Any) -> None:
    config = RECIPES / "configs" / "beyond" / "whisper-5s.yaml"
    monkeypatch.setattr(sys, "argv", ["speech", "--config", str(config), "--output_dir", str(tmp_path)])
    recipe("speech").main()
    results = json.loads((tmp_path / "results.json").read_text())
    trained, native = results["patched, trained"], results["as it is, window of 30 s"]
    assert trained["word_error_rate"] < 15
    assert trained["cpu_seconds_a_sound"] < 0.6 * native["cpu_seconds_a_sound"]


@pytest.mark.slow
def test_rotations_read_larger_pages_and_tables_do_not(tmp_path: Path, monkeypatch: Any) -> None:
    config = RECIPES / "configs" / "beyond" / "digits.yaml"
    monkeypatch.setattr(sys, "argv", ["vision", "--config", str(config), "--output_dir", str(tmp_path), "--seeds", "1"])
    recipe("vision").main()
    found = json.loads((tmp_path / "results.json").read_text())["accuracy"]
    table, turned = found["table"]["larger"][0], found["rope_2d"]["larger"][0]
    assert turned[0] > table[0] - 1
    assert turned[1] > table[1] + 20
    assert turned[2] > table[2] + 20


@pytest.mark.slow
def test_rotations_agree_with_the_driver_in_long_episodes(tmp_path: Path, monkeypatch: Any) -> None:
    config = RECIPES / "configs" / "beyond" / "cartpole.yaml"
    monkeypatch.setattr(
        sys, "argv", ["trajectories", "--config", str(config), "--output_dir", str(tmp_path), "--seeds", "1"]
    )
    recipe("trajectories").main()
    found = json.loads((tmp_path / "results.json").read_text())["found"]
    table = max(found[name]["as_the_driver"][0][-1] for name in found if name.startswith("table"))
    assert found["rope"]["as_the_driver"][0][-1] > table + 1


def test_a_page_enlarged_by_one_is_the_page() -> None:
    """Both ways of scoring agree at the trained size, whatever the model says."""
    vision = recipe("vision")
    chosen = vision.Settings(output_dir="", patches="", width=16, scored=30, factors=[1.0, 2.0])
    torch.manual_seed(0)
    scores = vision.score(vision.Reader(chosen), vision.digits(0)[1], chosen)
    assert scores["larger"][0] == scores["enlarged"][0]
    pixels = torch.arange(10).float()[:, None, None].expand(-1, 8, 8).contiguous()

    class Eye(torch.nn.Module):
        def forward(self, pages: torch.Tensor) -> torch.Tensor:
            named = pages[:, 0, 1::2, 1::2].round().long().clamp(0, 9)  # a pixel is the name of its digit
            return torch.nn.functional.one_hot(named.flatten(1), 10).float()

    eye = vision.score(Eye(), vision.Pages(pixels, torch.arange(10)), chosen)
    assert eye["larger"] == [100.0, 100.0]
    assert eye["enlarged"][0] == 100.0
    assert eye["enlarged"][1] > 80.0  # at the seams two digits are mixed
