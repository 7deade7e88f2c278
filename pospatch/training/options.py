"""The options of a fine-tuning run, a dataclass for each concern; transformers' own with other defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import yaml
from transformers import TrainingArguments
from transformers.integrations import is_tensorboard_available

from pospatch.errors import BadOptionType

__all__ = [
    "MATCHES",
    "ContrastArguments",
    "DataArguments",
    "DistillArguments",
    "ModelArguments",
    "PatchTrainingArguments",
    "RunArguments",
    "TuneArguments",
    "entry",
    "structure",
]

MATCHES = ("logits", "hidden", "layers", "embedding")  # what distillation compares


@dataclass
class ModelArguments:
    """Which model, and what is changed in it.

    Args:
        model: a folder, a Hub repository, `smollm2-135m` or `minilm-l6` (fetched from the package registry), or a mapping
            with `model_type` and config fields: a model with random weights.
        tokenizer: a folder or repository, or `bytes` (UTF-8 bytes, needs no file); default: the model's own.
        patch: `{method: yarn, factor: 2.0}`, a list of such mappings, or nothing: tune without a patch, as a control.
        dtype: what the weights are loaded in; with bf16 training, float32 weights are the safe choice for `full`.
        attn_implementation: as for transformers; default: the model's choice.
        head: `causal`: a language model; `masked`: a masked one; `encoder`: a model without a head. Fine-tuning takes `causal`,
            distillation all of them, contrast `encoder`.
    """

    model: str | None = field(
        default=None, metadata={"help": "folder, Hub repository, smollm2-135m, minilm-l6 or a config"}
    )
    tokenizer: str | None = field(default=None, metadata={"help": "folder, Hub repository or bytes"})
    patch: str | None = field(default=None, metadata={"help": "a YAML mapping or list: {method: yarn, factor: 2.0}"})
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "of the weights"})
    attn_implementation: str | None = field(default=None, metadata={"help": "as for transformers"})
    head: Literal["causal", "masked", "encoder"] = field(default="causal", metadata={"help": "what the model gives"})

    @property
    def stack(self) -> list[tuple[str, dict[str, Any]]]:
        """The patch as `pospatch.apply` takes it; empty where nothing is to be applied.

        Raises:
            BadOptionType: not a mapping with `method`, nor a list of such.
        """
        spec = structure("patch", self.patch)
        items = [spec] if isinstance(spec, dict | str) else (spec or [])
        return [entry(item) for item in items]


@dataclass
class DataArguments:
    """Which text, in what pieces; lengths in tokens.

    Args:
        text: a name that `pospatch.assets.text` knows, or a path to a UTF-8 file; several joined by "+".
        sequence_length: of a training sequence.
        documents: `concat`: the text is cut into sequences wherever they end; `packed`: whole documents share a sequence,
            positions start again and none sees another; `sliding`: a sequence lies within one document, and the next one
            `stride` tokens further; `padded`: a sequence is one document, or a piece of one, padded to its length, as sentence
            encoders read. Long contexts are learnt from whole texts: `concat` or `sliding`.
        separator: between two documents of the text; default: an empty line.
        stride: tokens, for `sliding`; default: sequence_length.
        held_out: share of the text's characters, at its end, that is never trained on and serves evaluation.
        train_tokens: use only so many tokens from the beginning; default: all.
        base_length: evaluated beside the target; default: what the model was trained for before the patch.
        target_length: default: what the patched model's config promises.
        eval_last: the last tokens of a window, which are scored: the same ones at every length.
        eval_windows: windows per length; each ends `eval_last` tokens after the one before.
    """

    text: str = field(default="kjv", metadata={"help": "name of a pospatch text, or a path to a UTF-8 file"})
    sequence_length: int = field(default=2048, metadata={"help": "tokens of a training sequence"})
    documents: Literal["concat", "packed", "sliding", "padded"] = field(
        default="concat", metadata={"help": "how documents and sequences meet"}
    )
    separator: str = field(default="\n\n", metadata={"help": "between two documents"})
    stride: int | None = field(default=None, metadata={"help": "tokens between sliding sequences"})
    held_out: float = field(default=0.1, metadata={"help": "share of the text kept for evaluation"})
    train_tokens: int | None = field(default=None, metadata={"help": "use only so many tokens"})
    base_length: int | None = field(default=None, metadata={"help": "tokens; default: the trained length"})
    target_length: int | None = field(default=None, metadata={"help": "tokens; default: what the patch promises"})
    eval_last: int = field(default=256, metadata={"help": "tokens scored at the end of a window"})
    eval_windows: int = field(default=1, metadata={"help": "windows per length"})


@dataclass
class TuneArguments:
    """What is trained.

    Args:
        tuning: `full`: every weight; `lora`: low-rank additions through peft, and the patch's own tensors and tables;
            `lora_embed_norm`: these, the token embeddings and the norms (LongLoRA); `patch`: only the patch's own tensors and
            tables.
        lora_r: rank, at least 1.
        lora_alpha: scale; the additions are multiplied by alpha / r.
        lora_dropout: share of the additions' inputs that is dropped, 0 to below 1.
        lora_target: names of linear modules, or `all-linear` (all but the head).
        loss_slice: positions whose logits exist at once; 0: the model's own loss, all logits at once.
        graft: `swap`: the patch stands from the start; `fade`: the old encoding fades out over `graft_steps` steps while the
            new one fades in; `at_step`: the patch is applied after `graft_steps` steps without it, as DroPE drops RoPE; what
            it brings (the gains of `qk_norm`) begins there.
        graft_steps: for `fade` and `at_step`.
        warm_start: give the token embeddings the mean row of the table that the patch drops.
        length_warmup: lengths that sequences are cut into at first, each for `length_warmup_steps` steps, before they are
            whole; each is at least 4 and divides sequence_length, so that a step has as many tokens at all times. With
            documents: concat each piece begins and ends as a sequence does (an encoder's CLS and SEP), over its outermost tokens.
        length_mix: lengths one of which is drawn for every step, and sequences cut into it, likewise; one named twice is drawn
            twice as often. For encoders, which are to read short texts as well as long ones.
    """

    tuning: Literal["full", "lora", "lora_embed_norm", "patch"] = field(
        default="lora", metadata={"help": "what is trained"}
    )
    lora_r: int = field(default=8, metadata={"help": "rank"})
    lora_alpha: float = field(default=16.0, metadata={"help": "the additions are scaled by alpha / r"})
    lora_dropout: float = field(default=0.0, metadata={"help": "of the additions' inputs"})
    lora_target: list[str] = field(default_factory=lambda: ["all-linear"], metadata={"help": "module names"})
    loss_slice: int = field(default=512, metadata={"help": "positions whose logits exist at once; 0: all"})
    graft: Literal["swap", "fade", "at_step"] = field(default="swap", metadata={"help": "how the patch takes over"})
    graft_steps: int = field(default=0, metadata={"help": "steps of the fade, or before the patch"})
    warm_start: bool = field(default=False, metadata={"help": "keep the mean of a dropped table"})
    length_warmup: list[int] = field(default_factory=list, metadata={"help": "lengths of sequences at first"})
    length_warmup_steps: int = field(default=0, metadata={"help": "steps at each of them"})
    length_mix: list[int] = field(default_factory=list, metadata={"help": "lengths, one drawn for every step"})


@dataclass
class RunArguments:
    """How the run starts and ends.

    Args:
        resume: `auto` goes on from the newest checkpoint in the output folder if there is one, `never` refuses a folder
            with checkpoints, a path goes on from that checkpoint.
        num_processes: how many processes are meant to run; anything else is an error (launchers may start fewer).
        parallel: how they are meant to share the work; anything else is an error. Default: as accelerate's file says.
        print_config: print the whole configuration as YAML and end.
        dry_run: build, patch, say what would be done, evaluate once at both lengths, and end; writes nothing.
        check_memory: refuse a run whose estimated memory is above all that the device has; with `false` it is said only.
    """

    resume: str = field(default="auto", metadata={"help": "auto, never or a checkpoint folder"})
    num_processes: int | None = field(default=None, metadata={"help": "processes that must be running"})
    parallel: Literal["one", "ddp", "fsdp", "deepspeed", "ring", "ulysses"] | None = field(
        default=None, metadata={"help": "scheme that must be running"}
    )
    print_config: bool = field(default=False, metadata={"help": "print the configuration as YAML and end"})
    dry_run: bool = field(default=False, metadata={"help": "build, patch, one forward per length, and end"})
    check_memory: bool = field(default=True, metadata={"help": "refuse what needs more memory than there is at all"})


@dataclass
class DistillArguments:
    """What the patched model learns from the unpatched one, at lengths that that one was trained for.

    Args:
        match: `logits`: the divergence of the two distributions over the vocabulary; `hidden`: the distance of the last hidden
            states as a share of their size; `layers`: the same of every layer's, which teaches faster where the layers stay
            what they were; `embedding`: the distance of the unit vectors that a sentence encoder gives, means over tokens.
            Several joined by "+" are added. Default: logits where there is a head, hidden where there is none.
        temperature: both distributions are softened by it, above 0; the gradient is scaled back by its square.
        mask_share: of the tokens that a masked model reads masked, as in its training; 0 to below 1.
        teacher: folder or Hub repository of the model to learn from; default: the student's own, without the patch. A second
            stage needs it: its student is what the first one saved.
        dropout: let the model's dropout act on the student. The teacher has none: it is noise in what is compared.
    """

    match: str | None = field(default=None, metadata={"help": "logits, hidden, layers or embedding, joined by +"})
    temperature: float = field(default=1.0, metadata={"help": "of both distributions"})
    mask_share: float = field(default=0.15, metadata={"help": "tokens that a masked model reads masked"})
    teacher: str | None = field(default=None, metadata={"help": "folder or Hub repository"})
    dropout: bool = field(default=False, metadata={"help": "let the student's dropout act"})

    @property
    def compares_states(self) -> bool:
        """False where logits alone are compared."""
        return self.match != "logits"


@dataclass
class ContrastArguments(DistillArguments):
    """What a sentence encoder learns to find, beside staying what it was.

    Args:
        scale: cosines are multiplied by it before the softmax over documents.
        keep: weight of the distance from the teacher, as `match` says (default: embedding), on two texts of a batch in pieces of
            the longest length that it knows and of a drawn one.
        query_tokens: shortest and longest passage that tells a document from the others, in tokens.
        query_share: of a passage's tokens that are left in its query, above 0 and up to 1.
    """

    scale: float = field(default=20.0, metadata={"help": "of the cosines"})
    keep: float = field(default=5.0, metadata={"help": "weight of staying what it was"})
    query_tokens: list[int] = field(default_factory=lambda: [12, 40], metadata={"help": "shortest, longest passage"})
    query_share: float = field(default=0.6, metadata={"help": "of a passage's tokens that are left in its query"})


@dataclass
class PatchTrainingArguments(TrainingArguments):
    """transformers' own, with defaults for long sequences and a log that hides nothing."""

    per_device_train_batch_size: int = field(default=1, metadata={"help": "sequences per device and step"})
    per_device_eval_batch_size: int = field(default=1, metadata={"help": "windows per device"})
    logging_steps: float = field(default=1, metadata={"help": "steps between two lines of metrics.jsonl"})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "replace NaN losses in the log"})
    report_to: None | str | list[str] = field(  # noqa: RUF036  (the parser takes the second type)
        default="auto", metadata={"help": "trackers, as for transformers; auto: tensorboard where it is installed"}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "checkpoints kept"})
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "bfloat16 arithmetic; default: where the GPU has it"}
    )
    dataloader_pin_memory: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "default: where there is a GPU"}
    )

    def __post_init__(self) -> None:
        mine: Any = self
        on_gpu = torch.cuda.is_available() and not mine.use_cpu
        if mine.bf16 is None:
            mine.bf16 = on_gpu and not mine.fp16 and torch.cuda.is_bf16_supported()
        if mine.dataloader_pin_memory is None:
            mine.dataloader_pin_memory = on_gpu
        if not (mine.gradient_checkpointing_kwargs or mine.activation_checkpointing_kwargs):
            mine.activation_checkpointing_kwargs = {"use_reentrant": False}  # the other form loses LoRA's gradients
        if mine.data_seed is None:
            # left out, the order of the data would hang on what else drew numbers before training
            mine.data_seed = mine.seed
        if mine.report_to == "auto":
            mine.report_to = "tensorboard" if is_tensorboard_available() else "none"
        mine.remove_unused_columns = False  # the data has no other columns, and the patched forward takes **kwargs
        super().__post_init__()


def structure(name: str, text: str | None) -> Any:
    """A value that may be written as YAML or JSON on one line."""
    try:
        return yaml.safe_load(text) if text is not None else None
    except yaml.YAMLError as error:
        raise BadOptionType(f"{name} is not YAML: got {text!r}") from error


def entry(item: Any) -> tuple[str, dict[str, Any]]:
    """A method and its options, from a name or {method: NAME, option: value}."""
    if isinstance(item, str):
        return item, {}
    if not isinstance(item, Mapping) or not isinstance(item.get("method"), str):
        raise BadOptionType(f"patch must be {{method: NAME, option: value}} or a list of such, got {item!r}")
    return item["method"], {name: value for name, value in item.items() if name != "method"}
