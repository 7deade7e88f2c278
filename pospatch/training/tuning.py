"""The model to be trained: loaded or built, patched, and with the right tensors trainable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import pospatch
from pospatch import assets
from pospatch.api import unwrap
from pospatch.checkpoint._own import own_tensors
from pospatch.errors import BadOption, BadOptionType, CheckpointError
from pospatch.training.options import ModelArguments, TuneArguments, structure

__all__ = ["Built", "build", "load_tensors", "own_tensors", "prepare", "still", "tokenizer_for"]


class Built:
    """A patched model, its tokenizer, and the lengths before and after the patch."""

    def __init__(self, model: Any, tokenizer: Any, trained_length: int | None) -> None:
        self.model, self.tokenizer, self.trained_length = model, tokenizer, trained_length

    @property
    def promised_length(self) -> int | None:
        """Tokens that the config promises now."""
        return pospatch.inspect(self.model).length


def build(arguments: ModelArguments, *, patched: bool = True) -> Built:
    """Load or build the model and apply the patch, unless that comes later.

    Raises:
        PospatchError: the patch does not fit, or the model cannot be built.
    """
    spec = structure("model", arguments.model)
    model = _random(spec, arguments) if isinstance(spec, dict) else _load(assets.model(str(arguments.model)), arguments)
    trained = pospatch.inspect(model).trained_length
    if arguments.stack and patched:
        pospatch.apply(model, arguments.stack)
    return Built(model, tokenizer_for(arguments, model), trained)


def _load(path: str, arguments: ModelArguments) -> Any:
    extra = {"attn_implementation": arguments.attn_implementation} if arguments.attn_implementation else {}
    return pospatch.from_pretrained(_auto(arguments), path, dtype=getattr(torch, arguments.dtype), **extra)


def _auto(arguments: ModelArguments) -> Any:
    """The class that loads a model with the head that was asked for."""
    import transformers

    names = {"causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM", "encoder": "AutoModel"}
    return getattr(transformers, names[arguments.head])


def _random(spec: dict[str, Any], arguments: ModelArguments) -> Any:
    from transformers import AutoConfig

    if not isinstance(spec.get("model_type"), str):
        raise BadOptionType(f"a model given as a mapping needs model_type, got {spec!r}")
    extra = {"attn_implementation": arguments.attn_implementation} if arguments.attn_implementation else {}
    config = AutoConfig.for_model(**spec)
    return _auto(arguments).from_config(config, dtype=getattr(torch, arguments.dtype), **extra)


def tokenizer_for(arguments: ModelArguments, model: Any) -> Any:
    """The tokenizer that was asked for, or the model's own.

    Raises:
        BadOption: a model with random weights has none, or its vocabulary is too small.
    """
    from transformers import AutoTokenizer, ByT5Tokenizer

    if arguments.tokenizer == "bytes":
        tokenizer: Any = ByT5Tokenizer(extra_ids=0)
    elif arguments.tokenizer is None and isinstance(structure("model", arguments.model), dict):
        raise BadOption("a model with random weights has no tokenizer: set tokenizer, for instance to bytes")
    else:
        tokenizer = AutoTokenizer.from_pretrained(assets.model(arguments.tokenizer or str(arguments.model)))
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise BadOption(f"the tokenizer has {len(tokenizer)} tokens and the model {rows}: they do not belong together")
    return tokenizer


def prepare(model: Any, arguments: TuneArguments, head: str = "causal") -> Any:
    """Make the right tensors trainable; with `lora` and its kin the result is a peft model around the same one.

    Raises:
        BadOption: `patch` where the patch has no tensors of its own.
    """
    if arguments.tuning == "full":
        return model
    own = own_tensors(model)
    if arguments.tuning.startswith("lora"):
        model = _with_lora(model, arguments, head)
    elif not own:
        raise BadOption("tuning: patch trains the patch's own tensors, and this one has none; use lora or full")
    else:
        model.requires_grad_(False)
    for tensor in own.values():
        tensor.requires_grad_(True)
    return model


def still(model: Any) -> None:
    """Switch off the dropout that the model has of its own; that of LoRA, which is said by `lora_dropout`, stays."""
    for name, module in model.named_modules():
        if "lora_" in name:
            continue
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for key, value in [*vars(module).items()]:  # attentions that hand a share to their function
            if key.endswith(("dropout", "layerdrop")) and isinstance(value, float):
                setattr(module, key, 0.0)


def _with_lora(model: Any, arguments: TuneArguments, head: str) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    names, whole = arguments.lora_target, arguments.tuning == "lora_embed_norm"
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM if head == "causal" else None,
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=arguments.lora_dropout,
        target_modules=names[0] if names == ["all-linear"] else names,
        modules_to_save=_embeddings_and_norms(model) if whole else None,
        ensure_weight_tying=whole and model.config.get_text_config().tie_word_embeddings,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise BadOption(f"lora_target {names} does not fit {type(model).__name__}: {error}") from error


def _embeddings_and_norms(model: Any) -> list[str]:
    """Names of the modules that LongLoRA trains whole beside its low-rank additions."""
    embeddings, chosen = model.get_input_embeddings(), set()
    for path, module in unwrap(model).named_modules():
        name = path.rpartition(".")[2]
        if module is embeddings and model.config.get_text_config().tie_word_embeddings and name != "embed_tokens":
            raise BadOption(
                f"tuning: lora_embed_norm: {path} is tied to the head, and peft keeps a tie of modules named embed_tokens "
                "alone; use full, or lora"
            )
        if module is embeddings or ("norm" in type(module).__name__.lower() and len(module._parameters)):
            chosen.add(name)
    return sorted(chosen)


def load_tensors(model: Any, path: Path) -> None:
    """Copy a file of the patch's tensors into a model, all of them.

    Raises:
        CheckpointError: the file and the patch do not name the same tensors.
    """
    from safetensors.torch import load_file

    stored, wanted = load_file(path), own_tensors(model)
    if set(stored) != set(wanted):
        raise CheckpointError(f"{path} holds {sorted(stored)[:3]} ..., the patch has {sorted(wanted)[:3]} ...")
    with torch.no_grad():
        for name, value in stored.items():
            wanted[name].copy_(value)
