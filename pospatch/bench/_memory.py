"""Peak memory of one cell beyond what stood before it, measured in a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch

from pospatch.bench._cell import SHAPES, Cell
from pospatch.errors import PospatchError

__all__ = ["measure_here", "peak"]

_STATUS = Path("/proc/self/status")


def peak(cell: Cell) -> int:
    """Bytes that the work of a cell needs at most, beyond the model and its inputs.

    Raises:
        PospatchError: the process failed; its last words are in the message.
    """
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    child = subprocess.run(
        [sys.executable, "-m", "pospatch.bench._child", cell.to_json()],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise PospatchError(f"bench: measuring the memory of {cell.to_json()} ended with {child.returncode}: {last}")
    return int(json.loads(child.stdout.strip().splitlines()[-1])["bytes"])


def measure_here(cell: Cell) -> int:
    """The same in this process; a short run first, so that what is loaded once is not counted."""
    from pospatch.bench._build import build

    layers = cell.layers or (1 if cell.model in SHAPES else None)  # a real model has its own
    build(replace(cell, length=16, layers=layers), cell.length)()
    work = build(cell)
    if cell.device != "cpu":
        module = torch.get_device_module(cell.device)
        module.synchronize()
        module.reset_peak_memory_stats()
        before = module.memory_allocated()
        work()
        module.synchronize()
        return int(module.max_memory_allocated() - before)
    _trim()
    with _Peak() as seen:
        work()
    return seen.extra


def _trim() -> None:
    """Give freed pages back, where the C library can: memory that is used again would not be seen."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class _Peak:
    """The largest resident size while the block runs: the kernel's mark where there is one, else looked up every 2 ms."""

    extra = 0

    def __enter__(self) -> _Peak:
        self._before = _resident("VmRSS")
        self._marked = _reset_mark()
        self._most, self._stop = self._before, threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        if not self._marked:
            self._watch.start()
        return self

    def _look(self) -> None:
        while not self._stop.is_set():
            self._most = max(self._most, _resident("VmRSS"))
            time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._marked:
            self._most = _resident("VmHWM")
        else:
            self._watch.join()
        self.extra = max(0, self._most - self._before)


def _resident(name: str) -> int:
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name + ":"))
        return int(line.split()[1]) * 1024
    import resource  # not on every system, and only asked for where /proc is missing

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _reset_mark() -> bool:
    """Set the kernel's mark of the largest resident size back to the present one."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
