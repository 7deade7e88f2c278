"""lm-eval as an engine: a model in memory goes in as its HFLM, one score a document comes out."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pospatch.errors import AssetError, PospatchError, UnsupportedHost

__all__ = ["engine", "language_model", "no_download", "score"]


def engine() -> str:
    """The version of lm-eval.

    Raises:
        PospatchError: it is not installed.
    """
    try:
        import lm_eval
    except ImportError as error:
        raise PospatchError(
            f"this task runs on lm-eval, and {error.name or 'it'} is not installed: pip install 'pospatch[lm-eval]'"
        ) from error
    return str(lm_eval.__version__)


def language_model(model: Any, tokenizer: Any, longest: int) -> Any:
    """The model as lm-eval's HFLM, which reads at most `longest` tokens, those that it generates among them.

    A prompt that leaves no room for as many tokens as its task may generate loses its beginning, with only a warning. Left
    alone, HFLM would read the length from the config.

    Raises:
        UnsupportedHost: HFLM does not take this model.
    """
    from lm_eval.models.huggingface import HFLM

    try:
        return HFLM(pretrained=model, tokenizer=tokenizer, max_length=longest, batch_size=1)
    except (TypeError, AttributeError, ValueError) as error:
        raise UnsupportedHost(f"lm-eval's HFLM does not take {type(model).__name__}: {error}") from error


def score(lm: Any, task: dict[str, Any], limit: int | None = None) -> list[dict[str, Any]]:
    """lm-eval's record of every document of one task: its metrics, document and answer.

    Raises:
        AssetError: the task's data could not be loaded.
    """
    import lm_eval

    with quiet():
        try:
            found = lm_eval.simple_evaluate(model=lm, tasks=[task], limit=limit, bootstrap_iters=0, log_samples=True)
        except (OSError, ValueError) as error:
            raise AssetError(
                f"lm-eval could not run {task['task']}: {' '.join(str(error).split())[:300]}. LongBench's data come from "
                "the Hub unless a folder of its .jsonl files is given as data="
            ) from error
    samples: list[dict[str, Any]] = found["samples"][task["task"]]
    return samples


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """lm-eval's bars and warnings off: pospatch shows its own bar."""
    logger, before = logging.getLogger("lm_eval"), os.environ.get("TQDM_DISABLE")
    level = logger.level
    logger.setLevel(logging.ERROR)
    os.environ["TQDM_DISABLE"] = "1"
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logger.setLevel(level)
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before


@contextlib.contextmanager
def no_download() -> Iterator[None]:
    """Import lm-eval's RULER without its download of nltk's sentence splitter, which no task here uses.

    Raises:
        PospatchError: nltk or wonderwords is not installed.
    """
    try:
        import nltk
        import wonderwords  # noqa: F401
    except ImportError as error:
        raise PospatchError(
            f"RULER's words come from {error.name}, which is not installed: pip install 'pospatch[lm-eval]'"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizers" / "punkt_tab").mkdir(parents=True)
        nltk.data.path.append(folder)
        try:
            yield
        finally:
            nltk.data.path.remove(folder)
