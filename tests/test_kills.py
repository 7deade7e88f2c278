"""A kill at any moment of a save leaves the old checkpoint or the new one, whole, and the user's other files."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model

import pospatch
from pospatch.checkpoint import _folders, _publish, remote
from pospatch.checkpoint._publish import replacing
from pospatch.errors import CheckpointError
from tests import clean, kills, tiny
from tests.test_checkpoint import stir

MANY = 10  # kills of one save at least, of one file or of many: below that the hook would have missed most of it


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """What was found after kills at every file-system operation of every scenario."""
    room = tmp_path_factory.mktemp("kills")
    names = list(kills.scenarios())
    environment = {**os.environ, "PYTHONPATH": str(clean.ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", str(room), *names],
        env=environment,
        cwd=room,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: json.loads((room / f"{name}.json").read_text()) for name in names}


@pytest.mark.parametrize("name", kills.scenarios())
def test_a_kill_before_any_operation_leaves_the_old_or_the_new(found: Any, name: str) -> None:
    states = dict(found[name])
    before = "nothing" if name.endswith("new folder") else "old"
    assert states.pop("unkilled: new") == 1
    assert states.pop("left over: []") == 1
    assert set(states) == {before, "new"}, states
    assert states[before] > MANY


@pytest.mark.slow
@pytest.mark.parametrize("name", kills.scenarios())
def test_a_kill_at_any_time_leaves_the_old_or_the_new(tmp_path: Path, name: str) -> None:
    """At random times of a process that saves again and again, so that what no hook sees is interrupted too."""
    room = tmp_path / "room"
    before = "nothing" if name.endswith("new folder") else "old"
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", str(room), "--at-random", name],
        env={**os.environ, "PYTHONPATH": str(clean.ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    states = json.loads((room / f"{name}.json").read_text())
    assert set(states) <= {before, "new"}
    assert sum(states.values()) == kills.RANDOM


def saved_twice(path: Path) -> tuple[Any, Any]:
    """Two patched models; the first stands at `path`, with a file of the user's."""
    models = [pospatch.apply(tiny.build("gpt2"), "t5_bias") for _ in range(2)]
    for number, model in enumerate(models):
        stir(model)
        with torch.no_grad():
            model.transformer.wte.weight.add_(number)
    models[0].save_pretrained(path, max_shard_size="20KB")
    (path / "notes").mkdir()
    (path / "notes" / "mine.txt").write_text("mine")
    return models[0], models[1]


def assert_holds(path: Path, model: Any) -> None:
    ids = tiny.ids(1, 20)
    with torch.no_grad():
        assert torch.equal(tiny.logits(tf.AutoModelForCausalLM.from_pretrained(path), ids), tiny.logits(model, ids))
    assert (path / "notes" / "mine.txt").read_text() == "mine"
    assert not [each.name for each in (*path.iterdir(), *path.parent.iterdir()) if "saving" in each.name]


@pytest.mark.parametrize(
    "hindrance", ["no exchange", "working directory", "a mount below", "a parent that is not ours"]
)
def test_where_a_folder_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hindrance: str) -> None:
    """The files are moved one by one, with a warning; what is left is the same."""
    path = tmp_path / "model"
    _, new = saved_twice(path)
    inode = path.stat().st_ino
    if hindrance == "no exchange":
        monkeypatch.setattr(_publish, "exchange", lambda one, other: False)
    elif hindrance == "working directory":
        monkeypatch.chdir(path)
    elif hindrance == "a mount below":

        def refuse(*args: Any) -> None:
            raise OSError(18, "another file system is mounted here")

        monkeypatch.setattr(_publish, "link_tree", refuse)
    else:
        access = os.access
        monkeypatch.setattr(os, "access", lambda where, mode: Path(where) != tmp_path and access(where, mode))
    with pytest.warns(UserWarning, match="cannot be replaced as a whole"):
        new.save_pretrained(path)
    assert_holds(path, new)
    assert path.stat().st_ino == inode
    assert not list(path.glob("model-*"))


@pytest.mark.parametrize("at", ["generation_config.json", "config.json"])
def test_an_error_between_two_moves_puts_everything_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """The old one has shards, the new one none: a file that only the new one has goes again."""
    path = tmp_path / "model"
    old, new = saved_twice(path)
    before = {each.name: each.read_bytes() for each in path.iterdir() if each.is_file()}
    monkeypatch.setattr(_publish, "exchange", lambda one, other: False)
    move, moved = _publish._move, []

    def failing(source: Path, target: Path) -> None:
        moved.append(target)
        if target == path / at and source.parent.name != _folders.KEPT:
            monkeypatch.setattr(_publish, "_move", move)
            raise OSError(28, "no space left")
        move(source, target)

    monkeypatch.setattr(_publish, "_move", failing)
    with pytest.warns(UserWarning, match="one by one"), pytest.raises(OSError, match="no space left"):
        new.save_pretrained(path)
    assert len(moved) > 3
    assert {each.name: each.read_bytes() for each in path.iterdir() if each.is_file()} == before
    monkeypatch.undo()
    assert_holds(path, old)


def test_a_save_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    old, new = saved_twice(path)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        new.save_pretrained(path)
    with pytest.raises(OSError, match="no space left"):
        new.save_pretrained(tmp_path / "fresh")
    monkeypatch.undo()
    assert_holds(path, old)
    assert not (tmp_path / "fresh").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file"):
        new.save_pretrained(tmp_path / "file")


def test_links_permissions_and_names_survive(tmp_path: Path) -> None:
    """A folder reached by a link, with its own permissions, a link in it, a name that looks like a pattern."""
    path = tmp_path / "real [1]*"
    _, new = saved_twice(path)
    path.chmod(0o750)
    (path / "link").symlink_to("notes")
    (path / "dangling").symlink_to("nowhere")
    os.mkfifo(path / "pipe")
    (tmp_path / "here").symlink_to(path)
    held = (path / "notes" / "mine.txt").open("a")
    new.save_pretrained(tmp_path / "here")
    with held:
        held.write("!")  # whoever has a file open goes on writing to the same
    assert (tmp_path / "here").is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert (path / "link" / "mine.txt").read_text() == "mine!"
    assert os.readlink(path / "dangling") == "nowhere"
    assert stat.S_ISFIFO((path / "pipe").stat().st_mode)


def test_kinds_of_checkpoints_share_a_folder(tmp_path: Path) -> None:
    """Variants and adapters stay beside a model, a model beside them; only parts of the same kind are replaced."""
    path = tmp_path / "model"
    _, model = saved_twice(path)
    model.save_pretrained(path, variant="other", max_shard_size="20KB")
    assert list(path.glob("model.other-*"))
    pospatch.save_adapter(pospatch.apply(tiny.build("gpt2"), "fire"), path)
    model.save_pretrained(path)
    model.save_pretrained(path, variant="other")
    assert not list(path.glob("model.other-*"))
    assert not list(path.glob("model-*"))
    assert_holds(path, model)
    loaded = pospatch.load_adapter(tiny.build("gpt2"), path)
    assert pospatch.inspect(loaded).method == "fire"
    inside = pospatch.apply(tiny.build("gpt2"), "t5_bias")
    inside.add_adapter(LoraConfig(target_modules=["c_attn"], r=2))
    weights = {each.name: each.read_bytes() for each in path.glob("*.safetensors")}
    inside.save_pretrained(path)  # an adapter alone
    assert (path / "adapter_model.safetensors").is_file()
    assert weights.items() <= {each.name: each.read_bytes() for each in path.glob("*.safetensors")}.items()
    assert (path / "config.json").is_file()


def test_savers_at_once_and_what_killed_ones_left(tmp_path: Path) -> None:
    """One of several savers wins as a whole; rooms of killed ones go, of living ones stay."""
    path = tmp_path / "model"

    def save(number: int) -> None:
        for _ in range(20):
            with replacing(path, stale=lambda name: name.startswith("part")) as draft:
                for part in range(number + 1):
                    (draft / f"part-{part}").write_text(str(number))

    threads = [threading.Thread(target=save, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    contents = {file.name: file.read_text() for file in path.iterdir()}
    winner = int(contents["part-0"])
    assert contents == {f"part-{part}": str(winner) for part in range(winner + 1)}
    assert [each.name for each in tmp_path.iterdir()] == ["model"]
    leftover = tmp_path / ".model.saving-0123"
    leftover.mkdir()
    (leftover / "half").write_text("written")
    with replacing(path), _folders.locked_room(tmp_path, ".model.saving-", path) as living:
        pass
    assert not leftover.exists()
    with _folders.locked_room(tmp_path, ".model.saving-", path) as living:
        with replacing(path):
            pass
        assert living.exists()


def test_what_was_moved_aside_outlives_its_process(tmp_path: Path) -> None:
    """It is put back before the next save, unless another checkpoint stands there; then it stays where it is."""
    path = tmp_path / ("x" * 70)
    path.mkdir()
    with _folders.locked_room(tmp_path, _folders.prefix_of(path), path) as room:
        (room / _folders.KEPT).mkdir()
        (room / _folders.KEPT / "config.json").write_text("old")
        (room / "config.json").write_text("new")
        (room / _publish.MOVES).write_text('["config.json", "part"]')  # the part was moved already
    assert room.exists()
    (path / "part").write_text("new")
    with replacing(tmp_path / ("x" * 71)):  # a name that begins alike
        pass
    with replacing(path) as draft:
        (draft / "other").write_text("kind")
        assert {each.name: each.read_text() for each in path.iterdir()} == {"config.json": "old"}
    assert not room.exists()
    (room / _folders.KEPT).mkdir(parents=True)
    (room / _folders.KEPT / "config.json").write_text("older")
    (room / _publish.MOVES).write_text('["config.json", "part"]')
    (room / "part").write_text("new")
    with replacing(path):
        pass
    assert (path / "config.json").read_text() == "old"
    assert (room / _folders.KEPT / "config.json").read_text() == "older"


@pytest.mark.parametrize(("method", "options"), [("fire", {}), ("yarn", {"factor": 2})])
def test_a_shim_is_added_under_the_rooms_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, options: dict[str, Any]
) -> None:
    held = []
    write = remote.write

    def writing(model: Any, draft: Path, *rest: Any) -> None:
        write(model, draft, *rest)
        held.append(_folders.in_use(draft))

    monkeypatch.setattr(remote, "write", writing)
    model = pospatch.apply(tiny.build("llama"), method, **options)
    pospatch.save_remote(model, tmp_path / "model", max_shard_size="20KB")
    assert held == [True]
    assert (tmp_path / "model" / remote.SHIM).exists() == (method == "fire")
    assert list((tmp_path / "model").glob("model-*"))


def test_an_adapter_of_peft_replaces_one_in_another_format(tmp_path: Path) -> None:
    model = get_peft_model(pospatch.apply(tiny.build("llama"), "fire"), LoraConfig(target_modules=["q_proj"], r=2))
    for old in ("adapter_model.bin", "adapter_pospatch.safetensors", "mine.bin", "other/adapter_model.bin"):
        (tmp_path / old).parent.mkdir(exist_ok=True)
        (tmp_path / old).write_text("old")
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_model.bin").exists()
    assert (tmp_path / "adapter_pospatch.safetensors").stat().st_size > len("old")
    pospatch.remove(model)
    pospatch.apply(model, "alibi")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "mine.bin").read_text() == "old"
    assert (tmp_path / "other" / "adapter_model.bin").read_text() == "old"
    assert not (tmp_path / "adapter_pospatch.safetensors").exists()


def test_what_others_write_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what comes between the links and the exchange: a new file, and another file under an old name."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "log").write_text("old")
    exchange = _publish.exchange

    def late(one: Path, other: Path) -> bool:
        (path / "new").write_text("late")
        (tmp_path / "log").write_text("another")
        os.replace(tmp_path / "log", path / "log")
        return exchange(one, other)

    monkeypatch.setattr(_publish, "exchange", late)
    with replacing(path) as draft:
        (draft / "config.json").write_text("{}")
    assert {each.name: each.read_text() for each in path.iterdir()} == {
        "config.json": "{}",
        "log": "another",
        "new": "late",
    }
