"""What holds for all tests: one width for every table, no Hub but the one that a test starts, and what is made once for many."""

import os

os.environ["COLUMNS"] = "200"  # read by rich when a console is made, so before anything of pospatch is imported
os.environ["HF_HUB_OFFLINE"] = "1"  # likewise by huggingface_hub, which without a network looks for each name for 23 s

from collections.abc import Iterator
from typing import Any

import pytest

TOGETHER = 20  # tests that are dealt out at once: one at a time, workers would wait for each


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What a module makes once, one worker makes: tests that share it are not dealt out over all of them (`--dist loadgroup`)."""
    for number, item in enumerate(items):
        made, module = item._fixtureinfo.name2fixturedefs.values(), item.nodeid.partition("::")[0]
        shared = any(each.scope == "module" for definitions in made for each in definitions)
        item.add_marker(pytest.mark.xdist_group(module if shared else f"{module}-{number // TOGETHER}"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """A pytest-xdist that passes over the groups makes everything twice, and says nothing."""
    if node.config.option.dist == "loadgroup" and not all("@" in each for each in ids):
        raise pytest.UsageError(
            "pytest-xdist does not read the groups of tests/conftest.py: pytest 9.2 with xdist 3.8?"
        )


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """flex_attention runs as it is written: compiling it and its mask takes seconds a method."""
    import torch

    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")
