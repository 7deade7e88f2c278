"""Arguments of a fine-tuning run: a YAML file and flags of the same names, where a flag wins over the file.

Every value of the file goes through the parser as if it had been typed as a flag, so both have the same checks.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentDefaultsHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from pospatch.errors import BadOption, BadOptionType, UnknownName, suggest

__all__ = ["Arguments", "DataArguments", "ModelArguments", "RunArguments", "TuneArguments", "parse"]


@dataclass
class ModelArguments:
    """Which model, and what is changed in it.

    Args:
        model: a folder, a Hub repository, `smollm2-135m` (fetched from the package registry), or a mapping with
            `model_type` and config fields: a model with random weights.
        tokenizer: a folder or repository, or `bytes` (UTF-8 bytes, needs no file); default: the model's own.
        patch: `{method: yarn, factor: 2.0}`, a list of such mappings, or nothing: tune without a patch, as a control.
        dtype: what the weights are loaded in; with bf16 training, float32 weights are the safe choice for `full`.
        attn_implementation: as for transformers; default: the model's choice.
    """

    model: str | None = field(default=None, metadata={"help": "folder, Hub repository, smollm2-135m or a config"})
    tokenizer: str | None = field(default=None, metadata={"help": "folder, Hub repository or bytes"})
    patch: str | None = field(default=None, metadata={"help": "a YAML mapping or list: {method: yarn, factor: 2.0}"})
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "of the weights"})
    attn_implementation: str | None = field(default=None, metadata={"help": "as for transformers"})

    @property
    def stack(self) -> list[tuple[str, dict[str, Any]]]:
        """The patch as `pospatch.apply` takes it; empty where nothing is to be applied.

        Raises:
            BadOptionType: not a mapping with `method`, nor a list of such.
        """
        spec = _structure("patch", self.patch)
        items = [spec] if isinstance(spec, dict | str) else (spec or [])
        return [_entry(item) for item in items]


@dataclass
class DataArguments:
    """Which text, in what pieces; lengths in tokens.

    Args:
        text: a name that `pospatch.assets.text` knows, or a path to a UTF-8 file.
        sequence_length: of a training sequence.
        documents: `concat`: the text is cut into sequences wherever they end; `packed`: whole documents share a sequence,
            positions start again and none sees another; `sliding`: a sequence lies within one document, and the next one
            `stride` tokens further. Long contexts are learnt from whole texts: `concat` or `sliding`.
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
    documents: Literal["concat", "packed", "sliding"] = field(
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
            `patch`: only the patch's own tensors and tables.
        lora_r: rank, at least 1.
        lora_alpha: scale; the additions are multiplied by alpha / r.
        lora_dropout: share of the additions' inputs that is dropped, 0 to below 1.
        lora_target: names of linear modules, or `all-linear` (all but the head).
        loss_slice: positions whose logits exist at once; 0: the model's own loss, all logits at once.
    """

    tuning: Literal["full", "lora", "patch"] = field(default="lora", metadata={"help": "what is trained"})
    lora_r: int = field(default=8, metadata={"help": "rank"})
    lora_alpha: float = field(default=16.0, metadata={"help": "the additions are scaled by alpha / r"})
    lora_dropout: float = field(default=0.0, metadata={"help": "of the additions' inputs"})
    lora_target: list[str] = field(default_factory=lambda: ["all-linear"], metadata={"help": "module names"})
    loss_slice: int = field(default=512, metadata={"help": "positions whose logits exist at once; 0: all"})


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
    """

    resume: str = field(default="auto", metadata={"help": "auto, never or a checkpoint folder"})
    num_processes: int | None = field(default=None, metadata={"help": "processes that must be running"})
    parallel: Literal["one", "ddp", "fsdp", "deepspeed", "ring", "ulysses"] | None = field(
        default=None, metadata={"help": "scheme that must be running"}
    )
    print_config: bool = field(default=False, metadata={"help": "print the configuration as YAML and end"})
    dry_run: bool = field(default=False, metadata={"help": "build, patch, one forward per length, and end"})


@dataclass
class _Training(TrainingArguments):
    """transformers' own, with defaults for long sequences and a log that hides nothing."""

    per_device_train_batch_size: int = field(default=1, metadata={"help": "sequences per device and step"})
    per_device_eval_batch_size: int = field(default=1, metadata={"help": "windows per device"})
    logging_steps: float = field(default=1, metadata={"help": "steps between two lines of metrics.jsonl"})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "replace NaN losses in the log"})
    report_to: None | str | list[str] = field(  # noqa: RUF036  (the parser takes the second type)
        default="none", metadata={"help": "trackers, as for transformers"}
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
        if (
            mine.data_seed is None
        ):  # left out, the order of the data would hang on what else drew numbers before training
            mine.data_seed = mine.seed
        mine.remove_unused_columns = False  # the data has no other columns, and the patched forward takes **kwargs
        super().__post_init__()


_OWN = (ModelArguments, DataArguments, TuneArguments, RunArguments)


@dataclass(frozen=True)
class Arguments:
    """Everything a run needs, checked; `config` is the same as plain data, for `--config`."""

    model: ModelArguments
    data: DataArguments
    tune: TuneArguments
    run: RunArguments
    training: TrainingArguments
    config: dict[str, Any]

    def to_yaml(self) -> str:
        """The configuration as YAML that `--config` reads."""
        return yaml.safe_dump(self.config, sort_keys=False)


class _Parser(HfArgumentParser):
    """Raises instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise BadOptionType(f"{message}; see --help")


def parse(argv: Sequence[str] | None = None) -> Arguments:
    """Read `--config FILE` and flags.

    Raises:
        UnknownName: a key or flag that does not exist; with a suggestion.
        BadOption, BadOptionType: a value that cannot be used.
    """
    parser = _Parser((*_OWN, _Training), allow_abbrev=False, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--config", help="a YAML file with the same names; flags win over it")
    given = list(sys.argv[1:] if argv is None else argv)
    valid = {action.dest: action.nargs == "+" for action in parser._actions if action.dest not in ("help", "config")}
    file = parser.parse_known_args(given)[0].config
    values, unknown = parser.parse_known_args([*_tokens(file, valid), *given])
    if unknown:
        name = next((item for item in unknown if item.startswith("--")), None)
        if name is None:
            raise BadOptionType(f"{' '.join(unknown)!r} follows a flag that takes one value; put a value in quotes")
        bare = name.removeprefix("--").partition("=")[0].replace("-", "_")
        raise UnknownName(f"unknown flag {name!r}.{suggest(bare, valid)} See --help")
    chosen = {name: value for name, value in vars(values).items() if name != "config"}
    config = _plain(chosen)
    _check(chosen)
    model, data, tune, run, training = parser.parse_dict(chosen)
    return Arguments(model, data, tune, run, training, config)


def _tokens(file: str | None, valid: dict[str, bool]) -> list[str]:
    """A YAML file as the flags that say the same; an empty value leaves the default. `valid`: does a name take several?"""
    tokens: list[str] = []
    for name, value in _read(file).items():
        if name not in valid:
            raise UnknownName(f"{file}: unknown key {name!r}.{suggest(str(name), valid)} See --help for all names")
        if value is None:
            continue
        tokens += [f"--{name}", *(map(_word, value) if isinstance(value, list) and valid[name] else [_word(value)])]
    return tokens


def _read(file: str | None) -> dict[Any, Any]:
    if file is None:
        return {}
    path = Path(file)
    if not path.is_file():
        raise BadOption(f"--config {file}: no such file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise BadOption(f"{file} is not YAML: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise BadOptionType(f"{file} must be a mapping of names to values, got {type(content).__name__}")
    return content or {}


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _structure(name: str, text: str | None) -> Any:
    """A value that may be written as YAML or JSON on one line."""
    try:
        return yaml.safe_load(text) if text is not None else None
    except yaml.YAMLError as error:
        raise BadOptionType(f"{name} is not YAML: got {text!r}") from error


def _entry(item: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(item, str):
        return item, {}
    if not isinstance(item, Mapping) or not isinstance(item.get("method"), str):
        raise BadOptionType(f"patch must be {{method: NAME, option: value}} or a list of such, got {item!r}")
    return item["method"], {name: value for name, value in item.items() if name != "method"}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """All of our own values, and those of transformers that differ from its defaults."""
    own = {item.name for group in _OWN for item in fields(group)} - {"print_config", "dry_run"}
    kept = {name: value for name, value in values.items() if name in own and value is not None}
    for name in ("patch", "model"):
        structure = _structure(name, kept.get(name))
        if isinstance(structure, dict | list):
            kept[name] = structure
    stock = vars(HfArgumentParser(TrainingArguments).parse_args([]))
    changed = {name: values[name] for name in stock if values[name] != stock[name]}
    plain: dict[str, Any] = json.loads(json.dumps({**kept, **changed}, default=str))
    return {name: value for name, value in plain.items() if value is not None}


def _check(values: dict[str, Any]) -> None:
    for name in ("model",) if values["print_config"] else ("model", *(() if values["dry_run"] else ("output_dir",))):
        if not values[name]:
            raise BadOption(f"{name} is missing: give it in the YAML file or as --{name}")
    for name in ("sequence_length", "eval_last", "eval_windows", "lora_r"):
        if values[name] < 1:
            raise BadOption(f"{name} must be at least 1, got {values[name]}")
    if values["loss_slice"] < 0:
        raise BadOption(f"loss_slice must be 0 (all logits at once) or more, got {values['loss_slice']}")
    if values["stride"] is not None and (values["documents"] != "sliding" or values["stride"] < 1):
        raise BadOption(f"stride must be at least 1 and goes with documents: sliding, got {values['stride']}")
    if not values["separator"]:
        raise BadOption("separator must not be empty: it says where a document ends")
    if not 0 < values["held_out"] < 1:
        raise BadOption(f"held_out is a share of the text above 0 and below 1, got {values['held_out']}")
    if values["resume_from_checkpoint"]:
        raise BadOption("resume_from_checkpoint is said with resume: PATH here")
    if values["save_only_model"]:
        raise BadOption(
            "save_only_model leaves out what an exact resume needs; set save_strategy: 'no' to save nothing"
        )
