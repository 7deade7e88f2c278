"""What the README shows is what the code does: its tables are the registries', its Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import pospatch
from pospatch import registry
from tests import tiny
from tests.readme import README, updated

TEXT = README.read_text(encoding="utf-8")


def test_tables_are_those_of_the_registries() -> None:
    assert updated(TEXT) == TEXT, "run `make readme`"


def test_missing_markers_are_noticed() -> None:
    with pytest.raises(ValueError, match="exactly once"):
        updated(TEXT.replace("<!-- /hosts -->", ""))


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 3
    tiny.build("llama").save_pretrained(tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_ADDED", {})
    names: dict[str, Any] = {"__name__": __name__}
    exec(blocks[0], names)
    assert "yarn(factor=2.0)" in capsys.readouterr().out
    exec(blocks[1], names)
    assert pospatch.inspect(names["again"]).method == "self_extend"
    exec(blocks[2], names)
    _check_log_distance(names["model"])


def _check_log_distance(model: Any) -> None:
    """Next to no strength is the model without positions, the example's strength is not: its bias reaches the attention."""
    assert pospatch.inspect(model).method == "log_distance"
    tokens = tiny.ids(length=12)
    biased = model(tokens).logits
    pospatch.apply(model, "log_distance", strength=1e-9)
    without = model(tokens).logits
    pospatch.remove(model)
    bare = pospatch.apply(model, "nope")(tokens).logits
    assert (without - bare).abs().max() < 1e-4
    assert (biased - bare).abs().max() > 0.1


def test_every_command_is_shown() -> None:
    from pospatch.cli import app

    shell = "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL))
    shown = set(re.findall(r"^(?:pospatch|make) (\w+)", shell, re.MULTILINE))
    assert shown - {"test"} == {each.name or each.callback.__name__ for each in app.registered_commands}


def test_every_folder_is_in_the_tree() -> None:
    root = README.parent
    folders = {path.name for path in (root / "pospatch").iterdir() if (path / "__init__.py").is_file()}
    assert folders == set(re.findall(r"^- `pospatch/(\w+)/`", TEXT, re.MULTILINE))
    for link in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (root / link).is_file(), link
