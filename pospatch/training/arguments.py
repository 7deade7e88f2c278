"""Arguments of a fine-tuning run: a YAML file and flags of the same names, where a flag wins over the file.

Every value of the file goes through the parser as if it had been typed as a flag, so both have the same checks.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentDefaultsHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser, TrainingArguments

from pospatch.errors import BadOption, BadOptionType, UnknownName, suggest
from pospatch.training.options import (
    MATCHES,
    ContrastArguments,
    DataArguments,
    DistillArguments,
    ModelArguments,
    PatchTrainingArguments,
    RunArguments,
    TuneArguments,
    structure,
)

__all__ = ["Arguments", "Parser", "parse", "parsed"]


_OWN = (ModelArguments, DataArguments, TuneArguments, RunArguments)
_ALL = (*_OWN, ContrastArguments)  # which has those of distillation


@dataclass(frozen=True)
class Arguments:
    """Everything a run needs, checked; `config` is the same as plain data, for `--config`."""

    model: ModelArguments
    data: DataArguments
    tune: TuneArguments
    run: RunArguments
    training: TrainingArguments
    config: dict[str, Any]
    distill: DistillArguments | None = None

    def to_yaml(self) -> str:
        """The configuration as YAML that `--config` reads."""
        return yaml.safe_dump(self.config, sort_keys=False)


class Parser(HfArgumentParser):
    """Raises instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise BadOptionType(f"{message}; see --help")


def parse(argv: Sequence[str] | None = None, learning: type[DistillArguments] | None = None) -> Arguments:
    """Read `--config FILE` and flags; those of `learning` exist where it is meant.

    Raises:
        UnknownName: a key or flag that does not exist; with a suggestion.
        BadOption, BadOptionType: a value that cannot be used.
    """
    own = _OWN if learning is None else (*_OWN, learning)
    parser = Parser((*own, PatchTrainingArguments), allow_abbrev=False, formatter_class=ArgumentDefaultsHelpFormatter)
    chosen = parsed(parser, argv)
    config = _plain(chosen)
    _check(chosen)
    model, data, tune, run, *rest = parser.parse_dict(chosen)
    return Arguments(model, data, tune, run, rest[-1], config, None if learning is None else rest[0])


def parsed(parser: Parser, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """All values by name, from `--config FILE` and flags, which win.

    Raises:
        UnknownName, BadOption, BadOptionType: as `parse`.
    """
    parser.add_argument("--config", help="a YAML file with the same names; flags win over it")
    given = list(sys.argv[1:] if argv is None else argv)
    valid = {action.dest: action.nargs == "+" for action in parser._actions if action.dest not in ("help", "config")}
    first = Parser(add_help=False, allow_abbrev=False)  # what is required may stand in the file
    first.add_argument("--config")
    file = first.parse_known_args(given)[0].config
    values, unknown = parser.parse_known_args([*_tokens(file, valid), *given])
    if unknown:
        name = next((item for item in unknown if item.startswith("--")), None)
        if name is None:
            raise BadOptionType(f"{' '.join(unknown)!r} follows a flag that takes one value; put a value in quotes")
        bare = name.removeprefix("--").partition("=")[0].replace("-", "_")
        raise UnknownName(f"unknown flag {name!r}.{suggest(bare, valid)} See --help")
    return {name: value for name, value in vars(values).items() if name != "config"}


def _tokens(file: str | None, valid: dict[str, bool]) -> list[str]:
    """A YAML file as the flags that say the same; an empty value leaves the default. `valid`: does a name take several?"""
    flags: list[str] = []
    for name, value in _read(file).items():
        if name not in valid:
            raise UnknownName(f"{file}: unknown key {name!r}.{suggest(str(name), valid)} See --help for all names")
        if value is None or value == []:
            continue
        flags += [f"--{name}", *(map(_word, value) if isinstance(value, list) and valid[name] else [_word(value)])]
    return flags


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


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """All of our own values, and those of transformers that differ from its defaults."""
    own = {item.name for group in _ALL for item in fields(group)} - {"print_config", "dry_run"}
    kept = {name: value for name, value in values.items() if name in own and value is not None}
    for name in ("patch", "model"):
        plain = structure(name, kept.get(name))
        if isinstance(plain, dict | list):
            kept[name] = plain
    stock = {**vars(HfArgumentParser(TrainingArguments).parse_args([])), "report_to": "auto"}
    changed = {name: values[name] for name in stock if values[name] != stock[name]}
    found: dict[str, Any] = json.loads(json.dumps({**kept, **changed}, default=str))
    return {name: value for name, value in found.items() if value is not None}


def _check(values: dict[str, Any]) -> None:
    for name in ("model",) if values["print_config"] else ("model", *(() if values["dry_run"] else ("output_dir",))):
        if not values[name]:
            raise BadOption(f"{name} is missing: give it in the YAML file or as --{name}")
    for name in ("sequence_length", "eval_last", "eval_windows", "lora_r"):
        if values[name] < 1:
            raise BadOption(f"{name} must be at least 1, got {values[name]}")
    matches = [] if values.get("match") is None else values["match"].split("+")
    if len({*matches}) < len(matches):
        raise BadOption(f"match names one thing twice, got {values['match']}")
    for name in matches:
        if name not in MATCHES:
            hint = suggest(name, MATCHES)
            raise BadOption(f"match must be {', '.join(MATCHES)}, or several joined by '+', got {name!r}.{hint}")
    if not values.get("temperature", 1.0) > 0:
        raise BadOption(f"temperature must be above 0, got {values['temperature']}")
    if not 0 <= values.get("mask_share", 0.0) < 1:
        raise BadOption(f"mask_share must be 0 to below 1, got {values['mask_share']}")
    if "scale" in values:
        _check_contrast(values)
    if values["loss_slice"] < 0:
        raise BadOption(f"loss_slice must be 0 (all logits at once) or more, got {values['loss_slice']}")
    if values["stride"] is not None and (values["documents"] != "sliding" or values["stride"] < 1):
        raise BadOption(f"stride must be at least 1 and goes with documents: sliding, got {values['stride']}")
    if not values["separator"]:
        raise BadOption("separator must not be empty: it says where a document ends")
    if not 0 < values["held_out"] < 1:
        raise BadOption(f"held_out is a share of the text above 0 and below 1, got {values['held_out']}")
    _check_schedules(values)
    if values["resume_from_checkpoint"]:
        raise BadOption("resume_from_checkpoint is said with resume: PATH here")
    if values["save_only_model"]:
        raise BadOption(
            "save_only_model leaves out what an exact resume needs; set save_strategy: 'no' to save nothing"
        )


def _check_contrast(values: dict[str, Any]) -> None:
    if not values["scale"] > 0 or not values["keep"] >= 0:
        raise BadOption(f"scale must be above 0 and keep at least 0, got {values['scale']} and {values['keep']}")
    if len(sizes := values["query_tokens"]) != 2 or not 1 <= sizes[0] <= sizes[1]:
        raise BadOption(f"query_tokens are the shortest and the longest passage, from 1, got {sizes}")
    if not 0 < values["query_share"] <= 1:
        raise BadOption(f"query_share must be above 0 and up to 1, got {values['query_share']}")


def _check_lengths(values: dict[str, Any]) -> None:
    warmup, each, mix, whole = (
        values[name] for name in ("length_warmup", "length_warmup_steps", "length_mix", "sequence_length")
    )
    if bool(warmup) != (each > 0) or each < 0:
        raise BadOption(f"length_warmup and length_warmup_steps go together, got {warmup} and {each}")
    if warmup and mix:
        raise BadOption("length_warmup and length_mix both say how long a step's sequences are: use one")
    for name, lengths in (("length_warmup", warmup), ("length_mix", mix)):
        if bad := [length for length in lengths if length < 4 or whole % length]:
            raise BadOption(
                f"{name}: {bad[0]} does not divide sequence_length {whole}, or is below 4; whole sequences are cut into pieces"
            )
        if lengths and values["documents"] in ("packed", "padded"):
            raise BadOption(
                f"{name} cuts sequences, and {values['documents']} documents would be cut with them; set documents: concat"
            )


def _check_schedules(values: dict[str, Any]) -> None:
    graft, steps = values["graft"], values["graft_steps"]
    if (graft == "swap") != (steps == 0) or steps < 0:
        raise BadOption(
            f"graft_steps is the number of steps of graft: fade or at_step, got {steps} with graft: {graft}"
        )
    _check_lengths(values)
    if values["warm_start"] and values["tuning"] == "lora":
        raise BadOption(
            "warm_start changes the token embeddings, and the adapter of tuning: lora does not hold them; use lora_embed_norm "
            "or full"
        )
