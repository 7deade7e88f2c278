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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

EVENTS = (
    "open",
    "os.",
    "shutil.",
    "ctypes.dlsym",
)  # one before each: an operation may be named twice, which costs one kill


@dataclass
class Scenario:
    """How the old and the new checkpoint are saved, and how one is loaded and made to answer."""

    old: Callable[[Path], None] | None
    new: Callable[[Path], None]
    answer: Callable[[Path], Any]


def scenarios() -> dict[str, Callable[[], Scenario]]:
    """By name; each builds its models when it is called."""
    return {
        "native": lambda: _models("llama", ("yarn", {"factor": 2}), {}, {}),
        "native into a new folder": lambda: _models("llama", ("yarn", {"factor": 2}), None, {}),
        "native, more shards to fewer": lambda: _models(
            "llama", ("yarn", {"factor": 2}), {"max_shard_size": "8KB"}, {}
        ),
        "patched": lambda: _models("gpt2", ("t5_bias", {}), {}, {}),
        "patched into a new folder": lambda: _models("gpt2", ("t5_bias", {}), None, {}),
        "patched, fewer shards to more": lambda: _models(
            "gpt2", ("t5_bias", {}), {"max_shard_size": "40KB"}, {"max_shard_size": "8KB"}
        ),
        "patched over native": _patched_over_native,
        "adapter": _adapter,
        "adapter of peft": _peft,
        "export": _export,
        "with a shim": _shim,
        "adapter inside a model": _inside,
        "GGUF": _gguf,
        "file by file": _file_by_file,
    }


def _stirred(host: str, method: tuple[str, dict[str, Any]] | None, seed: int) -> Any:
    """A tiny model, patched, with random values in every weight."""
    import torch

    import pospatch
    from tests import tiny

    model = tiny.build(host)
    if method is not None:
        pospatch.apply(model, method[0], **method[1])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn(value.shape, generator=generator) * 0.1)
    return model


def _logits(model: Any) -> bytes:
    import torch

    from tests import tiny

    with torch.no_grad():
        return tiny.logits(model.eval(), tiny.ids(1, 24)).numpy().tobytes()


def _loaded(path: Path) -> bytes:
    import transformers as tf

    return _logits(tf.AutoModelForCausalLM.from_pretrained(path))


def _models(host: str, method: tuple[str, dict[str, Any]], old: dict[str, Any] | None, new: dict[str, Any]) -> Scenario:
    first, second = _stirred(host, method, 1), _stirred(host, method, 2)
    before = None if old is None else lambda path: first.save_pretrained(path, **old)
    return Scenario(before, lambda path: second.save_pretrained(path, **new), _loaded)


def _patched_over_native() -> Scenario:
    first, second = _stirred("llama", ("yarn", {"factor": 2}), 1), _stirred("llama", ("fire", {}), 2)
    return Scenario(lambda path: first.save_pretrained(path, max_shard_size="20KB"), second.save_pretrained, _loaded)


def _adapter() -> Scenario:
    import pospatch
    from tests import tiny

    first, second = _stirred("gpt2", ("t5_bias", {}), 1), _stirred("gpt2", ("fire", {}), 2)
    return Scenario(
        lambda path: pospatch.save_adapter(first, path),
        lambda path: pospatch.save_adapter(second, path),
        lambda path: _logits(pospatch.load_adapter(tiny.build("gpt2"), path)),
    )


def _peft() -> Scenario:
    from peft import LoraConfig, get_peft_model

    import pospatch
    from tests import tiny

    def lora(method: tuple[str, dict[str, Any]], seed: int) -> Any:
        config = LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
        model = get_peft_model(pospatch.apply(tiny.build("llama"), method[0], **method[1]), config)
        import torch

        with torch.no_grad():
            for number, value in enumerate(model.parameters()):
                if value.requires_grad:
                    value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(seed + number)))
        return model

    first, second = lora(("t5_bias", {}), 100), lora(("fire", {}), 200)
    return Scenario(
        first.save_pretrained,
        second.save_pretrained,
        lambda path: _logits(pospatch.load_peft(tiny.build("llama"), path)),
    )


def _export() -> Scenario:
    import pospatch

    first, second = _stirred("llama", ("yarn", {"factor": 2}), 1), _stirred("llama", ("resonance", {}), 2)
    return Scenario(
        lambda path: pospatch.export(first, path, verify=False, max_shard_size="8KB"),
        lambda path: pospatch.export(second, path, verify=False),
        _loaded,
    )


def _shim() -> Scenario:
    import pospatch

    first, second = _stirred("llama", ("fire", {}), 1), _stirred("llama", ("alibi", {}), 2)
    return Scenario(
        lambda path: pospatch.save_remote(first, path), lambda path: pospatch.save_remote(second, path), _loaded
    )


def _inside() -> Scenario:
    """An adapter without a wrapper of peft, beside the base that it was put on."""
    from peft import LoraConfig

    import pospatch
    from tests import tiny

    base, config = tiny.build("llama"), LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
    models = [pospatch.apply(tiny.build("llama"), method) for method in ("t5_bias", "fire")]
    for model in models:
        model.add_adapter(config)

    def save(model: Any, path: Path) -> None:
        if not (path / "config.json").exists():
            base.save_pretrained(path)
        model.save_pretrained(path)

    def answer(path: Path) -> bytes:
        assert (path / "model.safetensors").is_file()
        return _logits(pospatch.load_peft(tiny.build("llama"), path))

    return Scenario(partial(save, models[0]), partial(save, models[1]), answer)


def _gguf() -> Scenario:
    import pospatch
    from tests.test_gguf import llama, tokenizer

    def save(factor: int, path: Path) -> None:
        model = pospatch.apply(llama(), "yarn", factor=factor)
        pospatch.export(model, path / "model.gguf", tokenizer=tokenizer())

    return Scenario(partial(save, 2), partial(save, 4), lambda path: (path / "model.gguf").read_bytes())


def _file_by_file() -> Scenario:
    """Where folders cannot be exchanged; the next save finds what was moved aside."""
    from pospatch.checkpoint import _publish

    whole = _models("gpt2", ("t5_bias", {}), {"max_shard_size": "20KB"}, {})

    def save(path: Path) -> None:
        _publish.exchange = lambda one, other: False  # in a fork
        whole.new(path)

    def answer(path: Path) -> bytes:
        with _publish.replacing(path):
            pass
        return _loaded(path)

    return Scenario(whole.old, save, answer)


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
    assert (
        _forked(partial(_begin, room / "old", scenario)) == 0
    )  # this process itself saves and loads nothing: it stays forkable
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
