"""What `tests.kills` interrupts: how an older and a newer checkpoint are saved, and how what is left of them is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["Scenario", "scenarios"]


@dataclass
class Scenario:
    """How the old and the new checkpoint are saved, and how one is loaded and made to answer."""

    old: Callable[[Path], None] | None
    new: Callable[[Path], None]
    answer: Callable[[Path], Any]


def scenarios() -> dict[str, Callable[[], Scenario]]:
    """By name; each builds its models when it is called."""
    return {
        "native": lambda: _models("llama", ("yarn", {"factor": 2}), {}, {}),
        "native into a new folder": lambda: _models("llama", ("yarn", {"factor": 2}), None, {}),
        "native, more shards to fewer": lambda: _models(
            "llama", ("yarn", {"factor": 2}), {"max_shard_size": "8KB"}, {}
        ),
        "patched": lambda: _models("gpt2", ("t5_bias", {}), {}, {}),
        "patched into a new folder": lambda: _models("gpt2", ("t5_bias", {}), None, {}),
        "patched, fewer shards to more": lambda: _models(
            "gpt2", ("t5_bias", {}), {"max_shard_size": "40KB"}, {"max_shard_size": "8KB"}
        ),
        "patched over native": _patched_over_native,
        "adapter": _adapter,
        "adapter of peft": _peft,
        "export": _export,
        "with a shim": _shim,
        "adapter inside a model": _inside,
        "GGUF": _gguf,
        "file by file": _file_by_file,
    }


def _stirred(host: str, method: tuple[str, dict[str, Any]] | None, seed: int) -> Any:
    """A tiny model, patched, with random values in every weight."""
    import torch

    import pospatch
    from tests import tiny

    model = tiny.build(host)
    if method is not None:
        pospatch.apply(model, method[0], **method[1])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn(value.shape, generator=generator) * 0.1)
    return model


def _logits(model: Any) -> bytes:
    import torch

    from tests import tiny

    with torch.no_grad():
        return tiny.logits(model.eval(), tiny.ids(1, 24)).numpy().tobytes()


def _loaded(path: Path) -> bytes:
    import transformers as tf

    return _logits(tf.AutoModelForCausalLM.from_pretrained(path))


def _models(host: str, method: tuple[str, dict[str, Any]], old: dict[str, Any] | None, new: dict[str, Any]) -> Scenario:
    first, second = _stirred(host, method, 1), _stirred(host, method, 2)
    before = None if old is None else lambda path: first.save_pretrained(path, **old)
    return Scenario(before, lambda path: second.save_pretrained(path, **new), _loaded)


def _patched_over_native() -> Scenario:
    first, second = _stirred("llama", ("yarn", {"factor": 2}), 1), _stirred("llama", ("fire", {}), 2)
    return Scenario(lambda path: first.save_pretrained(path, max_shard_size="20KB"), second.save_pretrained, _loaded)


def _adapter() -> Scenario:
    import pospatch
    from tests import tiny

    first, second = _stirred("gpt2", ("t5_bias", {}), 1), _stirred("gpt2", ("fire", {}), 2)
    return Scenario(
        lambda path: pospatch.save_adapter(first, path),
        lambda path: pospatch.save_adapter(second, path),
        lambda path: _logits(pospatch.load_adapter(tiny.build("gpt2"), path)),
    )


def _peft() -> Scenario:
    from peft import LoraConfig, get_peft_model

    import pospatch
    from tests import tiny

    def lora(method: tuple[str, dict[str, Any]], seed: int) -> Any:
        config = LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
        model = get_peft_model(pospatch.apply(tiny.build("llama"), method[0], **method[1]), config)
        import torch

        with torch.no_grad():
            for number, value in enumerate(model.parameters()):
                if value.requires_grad:
                    value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(seed + number)))
        return model

    first, second = lora(("t5_bias", {}), 100), lora(("fire", {}), 200)
    return Scenario(
        first.save_pretrained,
        second.save_pretrained,
        lambda path: _logits(pospatch.load_peft(tiny.build("llama"), path)),
    )


def _export() -> Scenario:
    import pospatch

    first, second = _stirred("llama", ("yarn", {"factor": 2}), 1), _stirred("llama", ("resonance", {}), 2)
    return Scenario(
        lambda path: pospatch.export(first, path, verify=False, max_shard_size="8KB"),
        lambda path: pospatch.export(second, path, verify=False),
        _loaded,
    )


def _shim() -> Scenario:
    import pospatch

    first, second = _stirred("llama", ("fire", {}), 1), _stirred("llama", ("alibi", {}), 2)
    return Scenario(
        lambda path: pospatch.save_remote(first, path), lambda path: pospatch.save_remote(second, path), _loaded
    )


def _inside() -> Scenario:
    """An adapter without a wrapper of peft, beside the base that it was put on."""
    from peft import LoraConfig

    import pospatch
    from tests import tiny

    base, config = tiny.build("llama"), LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
    models = [pospatch.apply(tiny.build("llama"), method) for method in ("t5_bias", "fire")]
    for model in models:
        model.add_adapter(config)

    def save(model: Any, path: Path) -> None:
        if not (path / "config.json").exists():
            base.save_pretrained(path)
        model.save_pretrained(path)

    def answer(path: Path) -> bytes:
        assert (path / "model.safetensors").is_file()
        return _logits(pospatch.load_peft(tiny.build("llama"), path))

    return Scenario(partial(save, models[0]), partial(save, models[1]), answer)


def _gguf() -> Scenario:
    import pospatch
    from tests.test_gguf import llama, tokenizer

    def save(factor: int, path: Path) -> None:
        model = pospatch.apply(llama(), "yarn", factor=factor)
        pospatch.export(model, path / "model.gguf", tokenizer=tokenizer())

    return Scenario(partial(save, 2), partial(save, 4), lambda path: (path / "model.gguf").read_bytes())


def _file_by_file() -> Scenario:
    """Where folders cannot be exchanged; the next save finds what was moved aside."""
    from pospatch.checkpoint import _publish

    whole = _models("gpt2", ("t5_bias", {}), {"max_shard_size": "20KB"}, {})

    def save(path: Path) -> None:
        _publish.exchange = lambda one, other: False  # in a fork
        whole.new(path)

    def answer(path: Path) -> bytes:
        with _publish.replacing(path):
            pass
        return _loaded(path)

    return Scenario(whole.old, save, answer)
