"""Other people's tests on patched models: transformers' ModelTesterMixin and peft's PeftCommonTester.

Both come from the source distributions of the installed versions, are unpacked into a temporary folder and stay there. Each
suite runs on tiny models twice and more: as they are, and with a method of pospatch on every one of them. A test that holds as
it is and not under a method needs an entry in tests/foreign_reasons.py that says why it does not apply; one without an entry is
an error, and so is an entry whose test holds.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from tests.foreign_hook import ADAPTERS, METHOD, REPORT
from tests.foreign_reasons import PLAIN, REASONS, Reason

ROOT = Path(__file__).parent.parent
PAGE = Path(__file__).parent / "FOREIGN.md"
MODELS = Path(__file__).parent / "foreign_models.py"
COMMAND = "python -m tests.foreign"
LLAMA = "trl-internal-testing/tiny-random-LlamaForCausalLM"  # the name that peft's tests load it by
ELSEWHERE = (  # what would be downloaded: other models, and tests that load one or a data set inside
    *("OPTFor", "GPT2LM", "GPTJ", "dummy-qwen2", "Gemma3", "MistralFor", "random-gpt2"),
    *("gemma4", "qwen2_with", "qwen3_with", "prefix_tuning_mistral", "lora_embed_scale", "adalora_no_dropout"),
    *("text_tokenizer_kwargs", "trust_remote_code", "4d_attention_mask", "set_requires_grad_prompt_learning"),
    "prompt_learning_with_gradient_checkpointing",
)

# What the tests import and the distributions do not bring: mixins whose tests then do not run, and a class that is only asked
# whether a model is one.
SUPPLIED = {
    "theirs/__init__.py": "",
    "theirs/exporters/__init__.py": "",
    "theirs/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "theirs/generation/__init__.py": "",
    "theirs/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "diffusers/__init__.py": "class StableDiffusionPipeline:\n    pass\n",
}
TAKEN = {  # distribution: files of its tests
    "transformers": ("test_modeling_common.py",),
    "peft": ("testing_common.py", "testing_utils.py", "test_decoder_models.py"),
}
BESIDE = ("parameterized",)  # pure Python, imported by the mixin

Method = tuple[str, dict[str, Any]]
Outcomes = dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Suite:
    """One file of tests, a selection of it, and the methods it runs under."""

    title: str
    select: str
    methods: tuple[Method, ...]
    peft: bool = False


ROPE: Method = ("rope", {})
ALIBI: Method = ("alibi", {})
BIAS: Method = ("t5_bias", {})
SUITES = {
    "llama": Suite(
        "ModelTesterMixin, llama",
        "LlamaTest",
        (("yarn", {"factor": 4.0}), ALIBI, ("self_extend", {"group_size": 2, "window": 4}), BIAS),
    ),
    "gpt2": Suite("ModelTesterMixin, gpt2", "GPT2Test", (ROPE, ALIBI, ("learned", {"length": 96}))),
    "bert": Suite("ModelTesterMixin, bert", "BertTest", (ROPE, ALIBI)),
    "bart": Suite("ModelTesterMixin, bart", "BartTest", (ROPE, ALIBI)),
    "t5": Suite("ModelTesterMixin, t5", "T5Test", (ROPE, ALIBI)),
    "peft": Suite(
        "PeftCommonTester, llama", " and ".join(f"not {name}" for name in ELSEWHERE), (ALIBI, BIAS), peft=True
    ),
}


@dataclass
class Compared:
    """One suite under one method beside the same suite without."""

    suite: str
    method: str
    count: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


# bringing the tests -------------------------------------------------------------------------------------------------------


def bring(room: Path) -> None:
    """Fetch both source distributions by pip and lay out what the runs import."""
    for name, files in TAKEN.items():
        _pip("download", "--no-binary", ":all:", "--no-deps", "--dest", room, f"{name}=={version(name)}")
        archive = next(room.glob(f"{name}-*.tar.gz"))
        with tarfile.open(archive) as packed:
            packed.extractall(room, filter="data")
        folder = room / "theirs"
        folder.mkdir(exist_ok=True)
        for file in files:
            shutil.copy(room / archive.name.removesuffix(".tar.gz") / "tests" / file, folder)
    _pip("install", "--no-deps", "--target", room, *BESIDE)
    for path, text in SUPPLIED.items():
        (room / path).parent.mkdir(parents=True, exist_ok=True)
        (room / path).write_text(text, encoding="utf-8")


def _pip(*arguments: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *map(str, arguments), "--quiet", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"pip {arguments[0]} failed; a package index is needed, as for `make setup`\n{done.stderr}")


def _llama(folder: Path, method: Method | None) -> None:
    """The tiny llama that peft's tests find where they would look for it on the Hub."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import pospatch
    from tests.measured import characters

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=32,  # a layer narrower than the ranks of their adapters fails them
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    if method is not None:
        pospatch.apply(model, method[0], **method[1])
    model.save_pretrained(folder)
    characters().save_pretrained(folder)


# running them -------------------------------------------------------------------------------------------------------------


def run(room: Path, suite: Suite, method: Method | None) -> Outcomes:
    """One pass of a suite in a process of its own."""
    work = Path(tempfile.mkdtemp(dir=room))
    report = work / "report.json"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(room), str(ROOT))),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        REPORT: str(report),
    }
    if suite.peft:
        _llama(work / LLAMA, method)
        environment |= {ADAPTERS: "1"} if method is not None else {}
    elif method is not None:
        environment[METHOD] = json.dumps(method)
    file = room / "theirs" / "test_decoder_models.py" if suite.peft else MODELS
    command = [sys.executable, "-m", "pytest", str(file), "-k", suite.select, "-q", "--tb=short", "-W", "ignore"]
    command += ["-c", os.devnull, "--rootdir", str(ROOT), "-p", "no:cacheprovider", "-p", "tests.foreign_hook"]
    done = subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True, check=False)
    if not report.exists():
        raise SystemExit(f"the run of {suite.title} broke off:\n{(done.stdout + done.stderr)[-3000:]}")
    outcomes = {name: tuple(found) for name, found in json.loads(report.read_text()).items()}
    if not outcomes:
        raise SystemExit(f"{suite.title}: nothing was run:\n{done.stdout[-3000:]}")
    return outcomes


def examine(room: Path, name: str) -> list[Compared]:
    """A suite without a method and with each of its methods."""
    suite = SUITES[name]
    before = run(room, suite, None)
    return [compare(name, method[0], before, run(room, suite, method)) for method in suite.methods]


# comparing them -----------------------------------------------------------------------------------------------------------


def compare(suite: str, method: str, before: Outcomes, after: Outcomes) -> Compared:
    """Test by test; a failure that no entry explains is a fault, and so is an entry without a failure."""
    result = Compared(suite, method)
    run_name = f"{suite}-{method}"
    for test in sorted({*before, *after}):
        (was, complaint), (now, message) = before.get(test, ("missing", "")), after.get(test, ("missing", ""))
        if was == "failed":
            kind, entries, said, place = "fails also unpatched", PLAIN, complaint, suite
        elif was == "passed" and now != "passed":
            kind, entries, said, place = "does not apply", REASONS, message, run_name
        else:
            kind = "passes both" if was == now == "passed" else "skipped by itself" if was == now else "differs"
            result.count[kind] += 1
            if kind == "differs":
                result.faults.append(f"{run_name} {test}: {was} unpatched, {now} patched")
            continue
        result.count[kind] += 1
        if not any(entry.explains(place, test, said) for entry in entries):
            result.faults.append(f"{place} {test}: {kind}, and no entry says why\n{said[-1500:]}")
    result.faults += _idle(REASONS, run_name, {t: m for t, (o, m) in after.items() if o == "failed"})
    result.faults += _idle(PLAIN, suite, {t: m for t, (o, m) in before.items() if o == "failed"})
    return result


def _idle(entries: tuple[Reason, ...], place: str, failed: dict[str, str]) -> Iterator[str]:
    for entry in entries:
        for test in entry.tests if entry.concerns(place) else ():
            if not any(entry.explains(place, name, said) for name, said in failed.items() if entry.names(test, name)):
                yield f"{place} {test}: no such failure any more, so its entry must go: {entry.why}"


# the page -----------------------------------------------------------------------------------------------------------------

KINDS = ("passes both", "skipped by itself", "fails also unpatched", "does not apply")


def row(found: Compared) -> str:
    """One line of the table."""
    counts = " | ".join(str(found.count[kind]) for kind in KINDS)
    return f"| {SUITES[found.suite].title} | {found.method} | {sum(found.count.values())} | {counts} |"


def page(found: list[Compared]) -> str:
    """The whole page."""
    rows = "\n".join(row(item) for item in found)
    supplied = ", ".join(f"`{path}`" for path, text in SUPPLIED.items() if text)
    return (
        "# Other people's tests on patched models\n\n"
        f"Made by `{COMMAND}` from the source distributions of transformers {version('transformers')} (its ModelTesterMixin, on "
        f"models of tests/foreign_models.py) and peft {version('peft')} (PeftCommonTester through its tests of decoder models). "
        "Each test runs on the plain model and on the patched one. Saved models are loaded by `pospatch.from_pretrained`; peft's "
        "tests load a patched checkpoint by `AutoModelForCausalLM`, as anyone would, and adapters that carry a patch by "
        "`pospatch.load_peft`.\n\n"
        f"The distributions lack modules that the tests import; empty ones stand in: {supplied}. So transformers' tests of "
        "generation and of exporters are not among these. Of peft's, those that would load other models or data sets from a hub "
        "are left out.\n\n"
        f"| suite | method | tests | {' | '.join(KINDS)} |\n|---|---|{'---|' * (1 + len(KINDS))}\n{rows}\n\n"
        f"## Does not apply, and why\n\n{_entries(REASONS)}\n\n## Fails also unpatched\n\n{_entries(PLAIN)}\n"
    )


def _entries(entries: tuple[Reason, ...]) -> str:
    lines = ["| tests | where | why |", "|---|---|---|"]
    lines += [f"| {', '.join(e.tests)} | {', '.join(e.places)} | {e.why} |" for e in entries]
    return "\n".join(lines)


def main(
    suite: Annotated[
        list[str] | None, typer.Option(help=f"Only these: {', '.join(SUITES)}; the page is then left.")
    ] = None,
    room: Annotated[Path | None, typer.Option(help="A folder to work in and to keep; fetched anew if empty.")] = None,
    jobs: Annotated[int, typer.Option(help="Suites that run at a time.")] = 2,
) -> None:
    """Run transformers' and peft's own tests on plain and on patched models and write tests/FOREIGN.md.

    Needs a package index, as `make setup` does, and about half an hour on two cores. Exits with 1 where a test fails under a
    method only and no entry of tests/foreign_reasons.py says why.

    Examples:  python -m tests.foreign  |  python -m tests.foreign --suite bert --room /tmp/room
    """
    if unknown := sorted(set(suite or ()) - set(SUITES)):
        raise typer.BadParameter(f"no such suite: {', '.join(unknown)}; there are {', '.join(SUITES)}")
    with tempfile.TemporaryDirectory() as fresh:
        place = (room or Path(fresh)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "theirs").exists():
            bring(place)
        with ThreadPoolExecutor(jobs) as pool:
            found = [item for items in pool.map(lambda name: examine(place, name), suite or SUITES) for item in items]
    for item in found:
        print(row(item))
    faults = list(dict.fromkeys(fault for item in found for fault in item.faults))
    if faults:
        raise SystemExit("\n\n".join((f"{len(faults)} faults; nothing was written", *faults)))
    if not suite:
        PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
