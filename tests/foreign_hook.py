"""What `python -m tests.foreign` brings into a run of other people's tests: patched models, and a report of each test.

transformers' tests call `model_class(config)` and `model_class.from_pretrained(folder)`. What stands in for a class hands out
models of the class itself with a patch on them: `pospatch.apply` after construction, `pospatch.from_pretrained` in place of the
class's own. peft's tests load a patched checkpoint as they load any; for an adapter that carries a patch `pospatch.load_peft` is
in place of `PeftModel.from_pretrained`, whose own error asks for it. All else (saving, copying, moving, training, the attributes
of the class, `load_adapter`) is what transformers, peft and pospatch really do.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pospatch

METHOD = "POSPATCH_FOREIGN_METHOD"  # what to put on every model, as JSON [name, options]; absent: nothing
ADAPTERS = "POSPATCH_FOREIGN_ADAPTERS"  # set where peft's tests run on a patched checkpoint
REPORT = "POSPATCH_FOREIGN_REPORT"  # the file that gets {test: [outcome, message]}

_OUTCOMES: dict[str, tuple[str, str]] = {}


def standing_for(base: type) -> type:
    """The class itself in an unpatched run; else one that hands out patched models of it."""
    if METHOD not in os.environ:
        return base
    method, options = json.loads(os.environ[METHOD])

    def put(model: Any) -> Any:
        return pospatch.apply(model, method, **options)

    class Patched(base):  # type: ignore[valid-type,misc]
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return put(base(*args, **kwargs))

        @classmethod
        def _from_config(cls, *args: Any, **kwargs: Any) -> Any:
            return put(base._from_config(*args, **kwargs))

        @classmethod
        def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
            if pretrained_model_name_or_path is None:  # weights handed over in memory: construction, not a checkpoint
                return put(base.from_pretrained(None, *args, **kwargs))
            return pospatch.from_pretrained(pretrained_model_name_or_path, *args, auto_class=base, **kwargs)

    Patched.__name__, Patched.__qualname__, Patched.__module__ = base.__name__, base.__qualname__, base.__module__
    return Patched


def pytest_configure() -> None:
    """Put `pospatch.load_peft` in place where peft's tests load an adapter that carries a patch."""
    if ADAPTERS not in os.environ:
        return
    from peft import PeftModel

    own = PeftModel.from_pretrained.__func__

    def from_pretrained(cls: type, model: Any, model_id: Any, **kwargs: Any) -> Any:
        config = json.loads(Path(model_id, kwargs.get("subfolder") or "", "adapter_config.json").read_text())
        if "pospatch" in config and "config" not in kwargs:
            return pospatch.load_peft(model, model_id, **kwargs)
        return own(cls, model, model_id, **kwargs)

    PeftModel.from_pretrained = classmethod(from_pretrained)


def pytest_runtest_logreport(report: Any) -> None:
    """Keep what a test reports of itself, its subtests and its fixtures: a failure before all, skipped where nothing ran."""
    name = report.nodeid.rpartition("::")[2]
    before = _OUTCOMES.get(name, ("skipped", ""))
    if report.failed:
        _OUTCOMES[name] = ("failed", f"{before[1]}\n{report.longreprtext}".strip())
    elif report.skipped:
        _OUTCOMES[name] = before
    elif report.when == "call" and before[0] != "failed":
        _OUTCOMES[name] = ("passed", "")


def pytest_sessionfinish() -> None:
    """Hand the report over."""
    Path(os.environ[REPORT]).write_text(json.dumps(_OUTCOMES), encoding="utf-8")
