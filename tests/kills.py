"""A process that saves over an older checkpoint and is killed before its n-th file-system operation, for n = 1, 2, 3, ...

    python -m tests.kills FOLDER [--at-random] SCENARIO...     writes FOLDER/SCENARIO.json: {state that was found: how often}

A state is "old", "new", "nothing" or what went wrong. The imports are paid once: every kill is a fork of one process that has the
model ready, and what is left is loaded by another fork that has not touched it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from tests.kill_scenarios import Scenario, scenarios

# one kill before each: an operation may be named twice, which costs one more
EVENTS = ("open", "os.", "shutil.", "ctypes.dlsym")


OTHERS = {"notes/plan.txt": "mine", "picture.png": "mine too", "README.md": "---\nlicense: mit\n---\nwords of mine\n"}


def _begin(folder: Path, scenario: Scenario) -> None:
    """The folder as every kill will find it: the old checkpoint and files of the user's."""
    if scenario.old is None:
        return
    scenario.old(folder)
    for name, text in OTHERS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def _digest(folder: Path) -> str:
    """Of every name and every byte in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    whole = hashlib.sha256(repr([str(path.relative_to(folder)) for path in files]).encode())
    for path in files:
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def _forked(work: Callable[[], None]) -> int:
    """The exit status of a fork that does the work."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001  a fork never returns into its parent's stack
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
    return os.waitpid(child, 0)[1]


def _killed_before(number: int, room: Path, work: Callable[[], None]) -> None:
    """Do the work with a hook that kills this process before its n-th operation on a path in `room`."""
    left, inside = number, str(room)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if not event.startswith(EVENTS):
            return
        named = event == "ctypes.dlsym" or any(
            inside in (os.fsdecode(item) if isinstance(item, bytes | os.PathLike) else str(item)) for item in arguments
        )
        if named:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    work()


def _state(folder: Path, scenario: Scenario, answers: dict[bytes, str], kept: Path) -> str:
    """What a fresh load finds there."""
    if not folder.exists():
        return "nothing"
    for name, text in OTHERS.items() if scenario.old is not None else ():
        if not (folder / name).is_file() or text.split("---")[-1] not in (folder / name).read_text():
            return f"{name} is lost"

    found = _answer(folder, scenario, kept)
    return "an error" if found is None else answers.get(found, "a mixture")


def _answer(folder: Path, scenario: Scenario, kept: Path) -> bytes | None:
    """What a process that loads the folder gets; None where it got an error."""

    def look() -> None:
        kept.write_bytes(scenario.answer(folder))

    return kept.read_bytes() if _forked(look) == 0 else None


def run(room: Path, scenario: Scenario, numbers: Iterable[int] = range(1, 2000)) -> dict[str, int]:
    """Kill at every operation until the work ends unkilled; what was found, and how often."""
    answers: dict[bytes, str] = {}
    # this process itself saves and loads nothing: it stays forkable
    assert _forked(partial(_begin, room / "old", scenario)) == 0
    assert _forked(partial(scenario.new, room / "new")) == 0
    for name in ("old", "new"):
        if (room / name).exists():
            answers[_answer(room / name, scenario, room / "answer") or b""] = name
    found: Counter[str] = Counter()
    known: dict[str, str] = {}  # what was loaded once from the same bytes under the same names
    for number in numbers:
        place = room / f"kill-{number}"
        place.mkdir()
        saved = place / "saved"
        if scenario.old is not None:
            shutil.copytree(room / "old", saved)
        status = _forked(partial(_killed_before, number, place, partial(scenario.new, saved)))
        digest = _digest(saved) if saved.exists() else "nothing"
        if digest not in known:
            known[digest] = _state(saved, scenario, answers, room / "answer")
        if status == 0:
            found[f"unkilled: {known[digest]}"] += 1
            rooms = [path.name for path in (*place.iterdir(), *saved.glob(".*")) if path != saved]
            found[f"left over: {sorted(rooms)}"] += 1
            break
        assert os.WIFSIGNALED(status), status
        found[known[digest]] += 1
    return dict(found)


RANDOM = 25  # kills at random times


def run_at_random(room: Path, scenario: Scenario) -> dict[str, int]:
    """Kill at random times of one save, drawn over twice as long as it takes."""
    answers: dict[bytes, str] = {}
    assert _forked(partial(_begin, room / "old", scenario)) == 0
    begun = time.monotonic()
    assert _forked(partial(scenario.new, room / "new")) == 0
    lasts, drawn = time.monotonic() - begun, random.Random(0)
    for name in ("old", "new"):
        if (room / name).exists():
            answers[_answer(room / name, scenario, room / "answer") or b""] = name
    found: Counter[str] = Counter()
    for number in range(RANDOM):
        saved = room / f"kill-{number}" / "saved"
        saved.parent.mkdir()
        if scenario.old is not None:
            shutil.copytree(room / "old", saved)
        child = os.fork()
        if child == 0:
            scenario.new(saved)
            os._exit(0)
        time.sleep(drawn.random() * 1.5 * lasts)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found[_state(saved, scenario, answers, room / "answer")] += 1
    return dict(found)


def _main(room: Path, names: list[str]) -> None:
    how = run_at_random if names[0] == "--at-random" else run
    for name in names:
        if name in scenarios():
            (room / name).mkdir(parents=True)
            (room / f"{name}.json").write_text(json.dumps(how(room / name, scenarios()[name]())))


if __name__ == "__main__":
    from transformers.utils import logging

    logging.disable_progress_bar()  # its watching thread would be missing in a fork
    warnings.simplefilter("ignore")
    _main(Path(sys.argv[1]), sys.argv[2:])
