"""transformers' own remarks are held back while a config is made only to be looked at."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["hushed"]


@contextmanager
def hushed() -> Iterator[None]:
    """transformers logs nothing from this thread, and no warning of Python's is shown in the whole process meanwhile."""
    thread = threading.get_ident()
    handlers = logging.getLogger("transformers").handlers

    def others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    for handler in handlers:
        handler.addFilter(others)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(others)
