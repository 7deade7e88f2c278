"""The model card: what was changed, how to load it in which engine, what was measured; a machine-readable head, no paths."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pospatch.checkpoint import _base
from pospatch.checkpoint._engines import llama_cpp_flags, vllm_overrides
from pospatch.checkpoint.llama_cpp import hindrance

__all__ = ["card", "licence_of"]

LANGUAGE_MODELS = "text-generation"


def card(
    model: Any, repo: str, *, results: list[dict[str, Any]], pictures: list[str], licence: str | None, native: bool
) -> str:
    """The text of README.md for one patched model."""
    import pospatch
    from pospatch.api import patch_of

    seen, patch = pospatch.inspect(model), patch_of(model)
    base = _base.describe(model, patch)["name"]
    stack = " + ".join(_call(item) for item in seen.stack) or "none"
    parts = [
        _head(model, repo, base, results, licence, seen.stack),
        f"# {repo.rpartition('/')[2]}",
        f"{base or 'A model'} with the positional mechanism changed by pospatch: `{stack}`. "
        f"Trained for {seen.trained_length or 'an unstated number of'} tokens, reads {seen.length or 'as many'} now.",
        _loading(model, repo, native),
        _engines(model, repo, base, native),
        _measured(results, pictures),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(
    model: Any, repo: str, base: str | None, results: list[dict[str, Any]], licence: str | None, stack: list[Any]
) -> str:
    from huggingface_hub import ModelCardData

    known = {
        "base_model": base if base and "/" in base else None,
        "license": licence,
        "library_name": "transformers",
        "pipeline_tag": LANGUAGE_MODELS if model.can_generate() and not model.config.is_encoder_decoder else None,
        "tags": ["pospatch", *(f"pospatch-{item['method']}" for item in stack)],
        "pospatch": {"version": _version(), "stack": stack},
    }
    found: dict[str, Any] = {name: value for name, value in known.items() if value is not None}
    evaluated = list(_eval_results(results))
    if evaluated:
        found |= {"model_name": repo.rpartition("/")[2], "eval_results": evaluated}
    return f"---\n{ModelCardData(**found).to_yaml()}\n---"


def _eval_results(results: list[dict[str, Any]]) -> Iterator[Any]:
    """Each number of each summary as card metadata."""
    from huggingface_hub import EvalResult

    for result in results:
        text = (result.get("text") or {}).get("name") or result.get("label") or "text"
        for metric, value in (result.get("summary") or {}).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield EvalResult(
                    task_type=LANGUAGE_MODELS,
                    dataset_type=str(text),
                    dataset_name=str(text),
                    metric_type=str(result.get("task", "metric")),
                    metric_name=str(metric),
                    metric_value=value,
                )


def _version() -> str:
    import pospatch

    return pospatch.__version__


def _call(item: dict[str, Any]) -> str:
    options = ", ".join(f"{name}={value!r}" for name, value in item.items() if name != "method")
    return f"{item['method']}({options})"


def _loading(model: Any, repo: str, native: bool) -> str:
    auto = "AutoModelForCausalLM" if model.can_generate() and not model.config.is_encoder_decoder else "AutoModel"
    load = f'model = {auto}.from_pretrained("{repo}")'
    first = "" if native else "import pospatch  # pip install pospatch\n"
    said = (
        "Plain transformers loads it; nothing else is needed."
        if native
        else "Without pospatch it does not load: nothing else knows these positions, and another one would answer with nonsense."
    )
    return f"## Loading\n\n```python\n{first}from transformers import {auto}\n\n{load}\n```\n\n{said}"


def _engines(model: Any, repo: str, base: str | None, native: bool) -> str:
    if not native:
        return ""
    name = base or "BASE"
    lines = []
    if (overrides := vllm_overrides(model.config)) is not None:
        lines.append(f"vLLM, on the unpatched base:\n\n```\nvllm serve {name} --hf-overrides {overrides}\n```")
    if (flags := llama_cpp_flags(model.config)) is not None:
        lines.append(f"llama.cpp, on a GGUF of the unpatched base:\n\n```\nllama-server {flags}\n```")
    elif hindrance(type(model).__name__, model.config, model.dtype) is None:
        lines.append(
            "llama.cpp has no flags for these positions, a GGUF has:\n\n"
            f"```\npip install 'pospatch[gguf]'\npospatch export {repo} --output model.gguf\n```"
        )
    if lines:
        lines.append("Weights that were trained after the patch are in this repository only.")
    return "## Other engines\n\n" + "\n\n".join(lines) if lines else ""


def _measured(results: list[dict[str, Any]], pictures: list[str]) -> str:
    if not results and not pictures:
        return ""
    rows = [
        f"| {result.get('task')} | {result.get('label', '')} | {name} | {value} |"
        for result in results
        for name, value in (result.get("summary") or {}).items()
        if isinstance(value, int | float | str)
    ]
    table = "\n".join(["| task | label | figure | value |", "|---|---|---|---|", *rows]) if rows else ""
    shown = "\n\n".join(f"![{Path(name).stem}]({name})" for name in pictures)
    return "\n\n".join(part for part in ("## Measured", table, shown) if part)


def licence_of(model: Any) -> str | None:
    """The licence that the base's own card states, where the card is at hand or can be fetched; else None."""
    from huggingface_hub import ModelCard
    from transformers.utils import cached_file

    name = getattr(model.config, "_name_or_path", "")
    if not name:
        return None
    try:
        found = cached_file(name, "README.md", _raise_exceptions_for_missing_entries=False)
        data = ModelCard.load(found).data if found else None
    except (OSError, ValueError):
        return None
    return getattr(data, "license", None)


def plain(value: Any) -> Any:
    """JSON data without absolute paths: of a path the last part only."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, str) and os.path.isabs(value):
        return os.path.basename(os.path.normpath(value))
    return value


def read_results(evaluation: Any) -> tuple[list[dict[str, Any]], list[Path]]:
    """Results and pictures from what was given: results of `pospatch.evaluate`, dictionaries, or paths to their JSON."""
    items = evaluation if isinstance(evaluation, list | tuple) else [] if evaluation is None else [evaluation]
    results: list[dict[str, Any]] = []
    pictures: list[Path] = []
    for item in items:
        if isinstance(item, str | os.PathLike):
            path = Path(item)
            content = json.loads(path.read_text())
            results += content["results"] if isinstance(content, dict) and "results" in content else [content]
            if (picture := path.with_suffix(".png")).is_file():
                pictures.append(picture)
        else:
            results.append(item.to_dict() if hasattr(item, "to_dict") else dict(item))
    return plain(results), pictures
