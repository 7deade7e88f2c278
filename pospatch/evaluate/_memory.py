"""The peak of memory while something runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

__all__ = ["peak_memory"]

_EVERY = 0.005  # seconds between two looks at the resident size


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int]]:
    """Yield a function that, afterwards, gives the bytes by which memory rose above its state at the start.

    On CUDA what the allocator handed out, elsewhere the resident size of the process, looked at every 5 ms; 0 where the
    system does not say.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
        return
    start = highest = _resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(_EVERY):
            highest = max(highest, _resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: max(highest, _resident()) - start if watcher.is_alive() else highest - start
    finally:
        highest = max(highest, _resident())
        done.set()
        watcher.join()


def _resident() -> int:
    """Resident bytes of this process, or 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as line:
            return int(line.read().split()[1]) * 4096
    except (OSError, ValueError, IndexError):
        return 0
