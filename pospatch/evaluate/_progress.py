"""Progress on stderr, unless turned off: one bar, or in a log (a file, a batch job) a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["bar"]

EVERY = 30.0  # seconds between lines of a log


@contextmanager
def bar(description: str, total: int, enabled: bool) -> Iterator[Callable[[], None]]:
    """Yield a function that moves the bar by one of `total` steps."""
    console = Console(stderr=True)
    if enabled and not (console.is_terminal or console.is_jupyter):
        yield _lines(console, description, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not enabled) as progress:
        task = progress.add_task(description, total=total)
        yield lambda: progress.advance(task)


def _lines(console: Console, description: str, total: int) -> Callable[[], None]:
    """A function that counts steps and says how far they are, at most every so many seconds."""
    begun = said = time.monotonic()
    done = 0

    def advance() -> None:
        nonlocal said, done
        done, now = done + 1, time.monotonic()
        if now - said >= EVERY:
            said, left = now, (now - begun) / done * max(0, total - done)
            text = f"{description}: {done} of {total}, about {left / 60:.1f} minutes left"
            console.print(text, soft_wrap=True, markup=False, highlight=False)

    return advance
