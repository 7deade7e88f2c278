"""Native exports of the real SmolLM2-135M: plain transformers and llama.cpp compute what the patched model computes.

OMP_NUM_THREADS=1 python -m pytest -m slow -s tests/test_native_smollm2.py
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import pospatch
from pospatch import assets
from tests import clean, llama_engine

pytestmark = pytest.mark.slow
FOUND = [round(1.0 + 3.0 * (pair / 31) ** 2, 3) for pair in range(32)]  # one divisor a pair, as a search gives them
SPECTRA: dict[str, tuple[str, dict[str, Any]]] = {
    "yarn": ("yarn", {"factor": 4.0}),
    "yarn, by wavelength": ("yarn", {"factor": 4.0, "interpolation": "wavelength"}),
    "ntk": ("ntk", {"factor": 4.0}),
    "by parts": ("ntk_by_parts", {"factor": 4.0}),
    "resonance": ("resonance", {}),
    "found factors": ("longrope", {"factor": 4.0, "short_factor": FOUND, "long_factor": FOUND}),
    "p_rope": ("p_rope", {}),
}
IN_LLAMA_CPP = ("found factors", "yarn, by wavelength")  # divisors alone, and divisors with an amplitude


@pytest.fixture(scope="module")
def base() -> Path:
    return assets.smollm2()


@pytest.fixture(scope="module")
def ids(base: Path) -> list[int]:
    """The first 1001 tokens of the novel's running text."""
    plain = (
        assets.text("persuasion")[2000:9000].encode("ascii", "ignore").decode()
    )  # llama_engine reads whole characters
    return tf.AutoTokenizer.from_pretrained(base)(plain).input_ids[:1001]


def patched(base: Path, name: str) -> Any:
    method, options = SPECTRA[name]
    return pospatch.apply(tf.AutoModelForCausalLM.from_pretrained(base).eval(), method, **options)


@pytest.mark.parametrize("name", SPECTRA)
def test_plain_transformers_gives_the_same_logits(base: Path, ids: list[int], tmp_path: Path, name: str) -> None:
    model, few = patched(base, name), ids[:384]
    written: Any = pospatch.export(model, tmp_path / "plain")
    assert written.difference <= 1e-5  # at the first positions and at the last ones of its length, in a clean process
    job = {"path": written.path, "classes": ["AutoModelForCausalLM"], "ids": [few]}
    answer = clean.run([job], tmp_path, "without")[0]["AutoModelForCausalLM"]
    assert torch.is_tensor(answer), answer
    with torch.no_grad():
        ours = model(torch.tensor([few])).logits
    gap = float((answer - ours).abs().max())
    print(f"\n{name}: {written.form}; logits of {len(few)} tokens differ by at most {gap:.1e}, std {ours.std():.2f}")
    shutil.rmtree(tmp_path)
    assert gap <= 1e-5


@pytest.mark.parametrize("name", IN_LLAMA_CPP)
def test_llama_cpp_gives_the_same_log_probabilities(base: Path, ids: list[int], tmp_path: Path, name: str) -> None:
    model, tokenizer = patched(base, name), tf.AutoTokenizer.from_pretrained(base)
    written: Any = pospatch.export(model, tmp_path / "model.gguf", tokenizer=tokenizer)
    text = tokenizer.decode(ids[:200])
    ours = _log_probabilities(model, ids)
    bare = _log_probabilities(pospatch.remove(model), ids)
    answer = llama_engine.ask([{"file": written.path, "ids": ids, "texts": [text]}], tmp_path)[0]
    gap = float((torch.tensor(answer["logprobs"]).double() - ours).abs().max())
    moved = float((bare - ours).abs().max())
    print(
        f"\n{name}: {written.form}; {len(ours)} log-probabilities differ by at most {gap:.1e}, from unpatched by {moved:.2f}"
    )
    shutil.rmtree(tmp_path)
    assert gap <= 1e-3
    assert moved > 100e-3, "the patch changes nothing here, so nothing was shown"
    assert answer["tokens"] == [tokenizer(text).input_ids]


def _log_probabilities(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return found[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
