"""lm-eval's own command line on a saved patched checkpoint: the shim, or an import before it, puts the patch on there too."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import sysconfig
import venv
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ByT5Tokenizer

import pospatch
from tests import tiny

pytestmark = pytest.mark.slow  # lm-eval is installed where it is missing, in an environment of the test's own
LINES = ("the quick brown fox", "jumps over the lazy dog")
IMPORT = "import pospatch; from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
TASK = """
task: two_lines
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that has lm-eval beside everything of this one."""
    if find_spec("lm_eval"):
        return sys.executable
    folder = tmp_path_factory.mktemp("lm-eval") / "venv"
    venv.create(folder, with_pip=True, symlinks=True)
    made = str(folder / "bin" / "python")
    site = subprocess.check_output([made, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], text=True)
    (Path(site.strip()) / "ours.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    subprocess.run([made, "-m", "pip", "install", "--quiet", "lm-eval>=0.4.13"], check=True)
    return made


def _saved(folder: Path, *, shim: bool, patch: str | None) -> Any:
    """A tiny model and its tokenizer in a folder, as a user saves them."""
    model = tiny.spread(tiny.llama(vocab_size=300, max_position_embeddings=64))
    if patch is not None:
        pospatch.apply(model, patch)
    if shim:
        pospatch.save_remote(model, folder)
    else:
        model.save_pretrained(folder)
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    return model


@torch.no_grad()
def _expected(model: Any) -> float:
    """Perplexity a byte; the line stands between two end-of-text tokens, lm-eval's start and the tokenizer's own end."""
    total = 0.0
    for line in LINES:
        ids = torch.tensor([[1, *(byte + 3 for byte in line.encode()), 1]])
        total -= float(model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]).sum())
    return math.exp(total / sum(len(line.encode()) for line in LINES))


def _measured(command: list[str], checkpoint: Path, folder: Path) -> float:
    (folder / "lines.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    (folder / "task.yaml").write_text(TASK.format(data=folder / "lines.jsonl"))
    flags = {
        "--model": "hf",
        "--model_args": f"pretrained={checkpoint},trust_remote_code=True",
        "--tasks": "two_lines",
        "--include_path": folder,
        "--device": "cpu",
        "--batch_size": 1,
        "--output_path": folder / "out",
    }
    words = [*command, *(str(word) for pair in flags.items() for word in pair)]
    environment = {**os.environ, "PYTHONPATH": str(Path(pospatch.__file__).parent.parent), "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = (folder / "out").rglob("results_*.json")
    result: float = json.loads(found.read_text())["results"]["two_lines"]["byte_perplexity,none"]
    return result


@pytest.mark.parametrize("patch", ["alibi", None])
def test_the_command_line_reads_a_checkpoint_with_a_shim(python: str, tmp_path: Path, patch: str | None) -> None:
    model = _saved(tmp_path / "model", shim=True, patch=patch)
    found = _measured([python, "-m", "lm_eval"], tmp_path / "model", tmp_path)
    assert found == pytest.approx(_expected(model), rel=1e-4)
    plain = tiny.spread(tiny.llama(vocab_size=300, max_position_embeddings=64))
    assert (abs(found - _expected(plain)) > 1) == (
        patch == "alibi"
    )  # lines within the trained length tell the others nothing


def test_the_command_line_reads_a_checkpoint_after_an_import(python: str, tmp_path: Path) -> None:
    model = _saved(tmp_path / "model", shim=False, patch="alibi")
    found = _measured([python, "-c", IMPORT], tmp_path / "model", tmp_path)
    assert found == pytest.approx(_expected(model), rel=1e-4)
    assert IMPORT in (Path(__file__).parent.parent / "README.md").read_text()
