"""The shim for trust_remote_code: it loads where pospatch is installed and not imported, and says what to install elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pospatch
from tests import clean, tiny
from tests.test_checkpoint import AUTO, PAIRS, patched, tokens

SCRIPT = """
import sys, torch, transformers
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "pospatch":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Absent())
ask = torch.tensor([[5, 6, 7, 8, 9] * 8])
try:
    transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
except ValueError as error:
    assert "trust_remote_code=True" in str(error), error
else:
    raise SystemExit("loaded without trust")
try:
    transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
except ImportError as error:
    assert "pip install pospatch" in str(error), error
else:
    raise SystemExit("loaded without pospatch")
sys.meta_path.pop(0)
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
with torch.no_grad():
    torch.save(model(ask).logits, sys.argv[2])
"""


def test_the_shim_loads_it_or_says_what_to_install(tmp_path: Path) -> None:
    model = pospatch.apply(tiny.build("gpt2"), "rope")
    pospatch.save_remote(model, tmp_path / "model")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(clean.ROOT)}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "model"), str(tmp_path / "logits")]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits"), model(torch.tensor([[5, 6, 7, 8, 9] * 8])).logits)


@pytest.mark.slow
def test_every_pair_loads_by_its_shim_in_a_fresh_process_to_the_bit(tmp_path: Path) -> None:
    asked, wanted = [], []
    for host, method in PAIRS:
        model, _ = patched(host, method)
        if model is None or pospatch.inspect(model).native:  # which needs no shim
            continue
        path, ids = tmp_path / f"{host}-{method}", tokens(model)
        pospatch.save_remote(model, path)
        asked.append({"path": str(path), "classes": [AUTO[host]], "ids": ids.tolist(), "load": "trusting"})
        with torch.no_grad():
            wanted.append(tiny.logits(model, ids))
    assert len(wanted) > len(AUTO)
    for job, got, logits in zip(asked, clean.run(asked, tmp_path, "trusting"), wanted, strict=True):
        (seen,) = got.values()
        assert torch.is_tensor(seen), (job["path"], seen)
        assert torch.equal(seen, logits), job["path"]


def test_the_shim_asks_for_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pospatch.save_remote(pospatch.apply(tiny.build("gpt2"), "rope"), tmp_path)
    source = (tmp_path / "modeling_pospatch.py").read_text()
    exec(compile(source, "shim", "exec"), {})  # this version will do
    monkeypatch.setattr(pospatch, "__version__", "0.0.9")
    with pytest.raises(ImportError, match=r"needs pospatch >= .*found 0\.0\.9"):
        exec(compile(source, "shim", "exec"), {})


def test_no_code_is_written_unasked_or_where_it_is_not_needed(tmp_path: Path) -> None:
    pospatch.apply(tiny.build("gpt2"), "rope").save_pretrained(tmp_path / "plain")
    pospatch.save_remote(pospatch.apply(tiny.build("llama"), "yarn", factor=2), tmp_path / "native")
    for folder in ("plain", "native"):
        assert not list((tmp_path / folder).glob("*.py"))
        assert "auto_map" not in json.loads((tmp_path / folder / "config.json").read_text())


def test_what_a_record_may_not_ask_for(tmp_path: Path) -> None:
    """Code named inside the base config is never reached, whatever trust is given."""
    import transformers as tf

    model = pospatch.apply(tiny.build("gpt2"), "rope")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pospatch"]["base_config"] |= {
        "auto_map": {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"},
        "trust_remote_code": True,
        "_attn_implementation_internal": "evil/kernels",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('code was run')\n")
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert not hasattr(loaded.config, "auto_map")
    with torch.no_grad():
        assert torch.equal(tiny.logits(loaded, tiny.ids()), tiny.logits(model, tiny.ids()))
