"""Other people's tests on patched models hold, or do not apply for a reason that is written down.

`-m slow`: the tests are fetched from a package index. `python -m tests.foreign` writes tests/FOREIGN.md anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import foreign
from tests.foreign_reasons import PLAIN, REASONS

RUNS = [f"{name}-{method}" for name, suite in foreign.SUITES.items() for method, _ in suite.methods]


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests are fetched to."""
    place = tmp_path_factory.mktemp("foreign")
    foreign.bring(place)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("name", foreign.SUITES)
def test_other_peoples_tests(room: Path, name: str) -> None:
    written = foreign.PAGE.read_text(encoding="utf-8").splitlines()
    for found in foreign.examine(room, name):
        assert not found.faults, "\n\n".join(found.faults)
        assert foreign.row(found) in written


def outcomes(**tests: str) -> foreign.Outcomes:
    return {name: (outcome, "boom" if outcome == "failed" else "") for name, outcome in tests.items()}


def test_a_failure_under_a_method_alone_is_a_fault() -> None:
    before = outcomes(test_a="passed", test_b="passed", test_c="skipped")
    assert not foreign.compare("x", "rope", before, before).faults
    (fault,) = foreign.compare("x", "rope", before, {**before, **outcomes(test_a="failed")}).faults
    assert "x-rope test_a: does not apply, and no entry says why" in fault
    assert foreign.compare("x", "rope", before, {**before, **outcomes(test_b="skipped")}).faults
    assert foreign.compare("x", "rope", before, {**before, **outcomes(test_c="passed")}).faults
    assert foreign.compare("x", "rope", outcomes(test_a="failed"), outcomes(test_a="failed")).faults  # nor unpatched


@pytest.mark.parametrize("run", RUNS)
def test_an_entry_without_its_failure_is_a_fault(run: str) -> None:
    """Where everything passes, each entry that speaks of the run complains; another failure does not hide behind it."""
    suite, method = run.split("-")
    entries = [*(e for e in REASONS if e.concerns(run)), *(e for e in PLAIN if e.concerns(suite))]
    named = {test for entry in entries for test in entry.tests}
    passed = outcomes(**dict.fromkeys(named, "passed"))
    faults = foreign.compare(suite, method, passed, passed).faults
    assert len(faults) == sum(len(entry.tests) for entry in entries)
    other = foreign.compare(suite, method, passed, outcomes(**dict.fromkeys(named, "failed"))).faults
    assert len(other) >= len(named)


def test_every_entry_speaks_of_a_run_that_there_is() -> None:
    assert all(any(entry.concerns(run) for run in RUNS) for entry in REASONS)
    assert all(any(entry.concerns(name) for name in foreign.SUITES) for entry in PLAIN)
