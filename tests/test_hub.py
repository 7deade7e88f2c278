"""The Hub over real HTTP on the loopback: create, upload, card, load by name and revision, private, cut, refused; no token."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import clean

SOURCE = ast.parse((Path(__file__).parent / "hub_scenarios.py").read_text())
LIST = next(
    item.value for item in SOURCE.body if isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) == "SCENARIOS"
)
NAMES = [ast.unparse(item) for item in LIST.elts]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    answered = tmp_path_factory.mktemp("hub") / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.hub_scenarios", str(answered)],
        env={**os.environ, "PYTHONPATH": str(clean.ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(answered.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_hub(results: dict[str, str], name: str) -> None:
    assert results[name] == "as it should be", results[name]
