"""Every family: what pospatch promises of it holds, and what it refuses it refuses with a reason.

The default run takes a sample, `-m slow` all of them (about ten minutes); `python -m tests.matrix` writes SUPPORT.md anew.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from pospatch.hosts import HOSTS
from tests import matrix, support
from tests.families import Variant

ANSWERS = {result.variant: result for result in matrix.saved_results()}
EVERY = 14  # one variant of this many is in the default run, and those of the wirings below
REFERENCES = ("llama-causal", "gpt2-causal", "bert-masked", "t5-seq2seq", "bart-seq2seq", "vit-base", "bloom-causal")


def _cases() -> list[Any]:
    cases = []
    for at, variant in enumerate(matrix.everyone()):
        sampled = at % EVERY == 0 or str(variant) in REFERENCES
        cases.append(pytest.param(variant, id=str(variant), marks=() if sampled else pytest.mark.slow))
    return cases


@pytest.mark.parametrize("variant", _cases())
def test_family(variant: Variant) -> None:
    """Everything is asked anew, and the answers are those of the table."""
    answer, written = matrix.examine(variant), ANSWERS[str(variant)]
    assert (answer.status, answer.wiring) == (written.status, written.wiring), answer.reason
    held = [name for name, said in answer.methods.items() if said.startswith("holds")]
    assert held == [name for name, said in written.methods.items() if said.startswith("holds")]
    assert answer.status != "refused" or answer.reason


def test_count() -> None:
    count = Counter(answer.status for answer in ANSWERS.values())
    print(
        f"{count['passes']} variants of families pass, {count['refused']} are refused, {count['not built']} are not built"
    )
    assert count["passes"] >= 240
    assert set(ANSWERS) == {str(variant) for variant in matrix.everyone()}


def test_every_wiring_is_shown() -> None:
    """No row stands there that no family of the matrix proves."""
    shown = {answer.wiring for answer in ANSWERS.values() if answer.status == "passes"}
    assert sorted({row.wiring for row in HOSTS} - shown) == []


def test_support_table_is_made_from_the_answers() -> None:
    assert support.SUPPORT.read_text(encoding="utf-8") == support.markdown()
