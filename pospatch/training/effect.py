"""What a patch does, beside its controls: arms that start from one model, each tuned over several seeds and scored alike."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

import pospatch
from pospatch import assets
from pospatch.errors import BadOptionType
from pospatch.evaluate._limits import reach
from pospatch.evaluate._result import versions, write_json, write_text
from pospatch.evaluate.perplexity import perplexity
from pospatch.training import graft, processes, resume, tuning
from pospatch.training.arguments import Arguments, parse
from pospatch.training.data import halves
from pospatch.training.distill import DistillRun
from pospatch.training.options import DistillArguments, structure
from pospatch.training.run import carry_out, run
from pospatch.training.study import Curve, draw, settings, spread, write

__all__ = ["Settings", "effect", "main"]


@dataclass
class Settings:
    """Options of the runs are those of finetune.py, or of distill.py where `distill: true` stands among them.

    An arm starts from the model that `base` trains, where there is one, and from its own `model` otherwise; with `max_steps: 0`
    it is scored as it is; with `seeds: 1` it has one run. Every arm is scored on the same tokens: the last ones of windows of
    held-out text, whose context grows.
    """

    output_dir: str
    arms: str = field(metadata={"help": "YAML: names of arms and their options; ratios are to the first"})
    common: str = field(default="{}", metadata={"help": "YAML: options of every run"})
    base: str | None = field(
        default=None, metadata={"help": "YAML: options of the run that makes the model of all arms"}
    )
    seeds: int = field(default=3, metadata={"help": "runs of an arm that is trained: seeds 0, 1, ..."})
    lengths: list[int] = field(default_factory=lambda: [256, 1024], metadata={"help": "tokens of a window"})
    scored: int = field(default=128, metadata={"help": "last tokens of a window that are scored"})
    windows: int = field(default=64, metadata={"help": "windows a length"})
    vocabulary: int = field(default=0, metadata={"help": "train a BPE of so many tokens on the text; 0: none"})
    title: str = field(default="", metadata={"help": "of the picture"})


class Interrupted(Exception):
    """A run was stopped by a signal; `ended` is what it returned."""

    def __init__(self, ended: dict[str, Any]) -> None:
        self.ended = ended


class Effect:
    """The runs of one study, in order; what is finished is not done again."""

    def __init__(self, chosen: Settings) -> None:
        self.chosen, self.folder = chosen, Path(chosen.output_dir)
        self.common, self.arms = _mapping("common", chosen.common), _mapping("arms", chosen.arms)
        self.base = _mapping("base", chosen.base) if chosen.base else None
        if bad := [name for name, options in self.arms.items() if not isinstance(options, dict)]:
            raise BadOptionType(
                f"arms: {bad[0]!r} must be a mapping of options, got {self.arms[bad[0]]!r}; {{}} is none"
            )

    def carry_out(self) -> dict[str, Any]:
        """All arms and seeds; what results.json holds."""
        if self.chosen.vocabulary:
            self.common["tokenizer"] = self._vocabulary()
        if self.base is not None:
            self._train(self._arguments("base", self.base, 0))
            self.common["model"] = str(self.folder / "base" / "model")
        todo = [(name, seed) for seed in range(self.chosen.seeds) for name in self.arms if seed < self._seeds(name)]
        done: dict[str, list[dict[str, Any]]] = {name: [] for name in self.arms}
        for number, (name, seed) in enumerate(todo, 1):
            print(f"== {name}, seed {seed} ({number} of {len(todo)})", flush=True)
            done[name].append(self._one(name, seed))
            shown = ", ".join(f"{length}: {value:.2f}" for length, value in done[name][-1]["perplexity"].items())
            print(f"== {name}, seed {seed}: perplexity at {shown}", flush=True)
        return {"versions": versions(), "arms": done}

    def _seeds(self, name: str) -> int:
        """How many runs an arm has: one where it is not trained."""
        options = {**self.common, **self.arms[name]}
        return 1 if options.get("max_steps") == 0 else int(options.get("seeds", self.chosen.seeds))

    def _one(self, name: str, seed: int) -> dict[str, Any]:
        """One arm with one seed: train, score, and write down."""
        arguments = self._arguments(name, self.arms[name], seed)
        _, text = halves(arguments.data)
        of = {
            "config": {k: value for k, value in arguments.config.items() if k not in ("output_dir", "check_memory")},
            "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "lengths": self.chosen.lengths, "scored": self.chosen.scored, "windows": self.chosen.windows,
        }  # fmt: skip
        target = Path(str(arguments.training.output_dir)) / "scores.json"
        if target.is_file() and (found := json.loads(target.read_text()))["of"] == of:
            return dict(found)
        began = time.process_time()
        score = self._score(self._model(arguments), text)
        seconds = round(time.process_time() - began, 1)
        found = {"of": of, "seed": seed, "cpu_seconds": seconds, **score}
        write_json(target, found)
        return found

    def _model(self, arguments: Arguments) -> tuning.Built:
        """What an arm is scored as: trained, or as it would start."""
        if arguments.training.max_steps != 0:
            self._train(arguments)
            saved = Path(str(arguments.training.output_dir)) / "model"
            return tuning.build(replace(arguments.model, model=str(saved), patch=None))
        built = tuning.build(arguments.model)
        if arguments.tune.warm_start:
            graft.warm_start(built.model)
        return built

    def _arguments(self, name: str, options: dict[str, Any], seed: int) -> Arguments:
        """A run's options, through a file that finetune.py reads as well."""
        place = self.folder / re.sub(r"\W+", "-", name.lower()).strip("-")
        place = place if name == "base" else place / f"seed-{seed}"
        whole = {**self.common, **options, "seed": seed, "output_dir": str(place)}
        distilled = bool(whole.pop("distill", False))
        whole.pop("seeds", None)
        path = write_text(place / "options.yaml", yaml.safe_dump(whole, sort_keys=False))
        arguments = parse(["--config", str(path)], DistillArguments if distilled else None)
        processes.check_count(arguments.training.world_size, 1)  # scores are written by one
        return arguments

    def _train(self, arguments: Arguments) -> None:
        folder = Path(str(arguments.training.output_dir))
        if (folder / "results.json").is_file():
            resume.same_run(arguments.config, folder / "config.yaml")
            return
        ended = run(arguments, DistillRun if arguments.distill is not None else None)
        if ended.get("interrupted"):
            raise Interrupted(ended)

    def _score(self, built: tuning.Built, text: str) -> dict[str, Any]:
        """Perplexity at the lengths that the model can read."""
        end = reach(built.model)
        lengths = [length for length in self.chosen.lengths if end is None or length <= end]
        found = perplexity(
            built.model.eval(), built.tokenizer, text, lengths=lengths, protocol="last_k", k=self.chosen.scored,
            windows=self.chosen.windows,
        )  # fmt: skip
        return {
            "perplexity": {str(row["length"]): row["perplexity"] for row in found.rows},
            "tokens_scored": found.n_scored_tokens // len(lengths),
            "text": found.text,
            "trained_length": pospatch.inspect(built.model).trained_length,
        }

    def _vocabulary(self) -> str:
        """A byte-level BPE trained on the whole text, made once."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        folder = self.folder / f"bpe-{self.chosen.vocabulary}"
        if not (folder / "tokenizer.json").is_file():
            end = "<|endoftext|>"
            bpe = Tokenizer(models.BPE())
            bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(
                vocab_size=self.chosen.vocabulary, special_tokens=[end], initial_alphabet=alphabet
            )
            bpe.train_from_iterator(assets.text(self.common["text"]).splitlines(), trainer)
            PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=end).save_pretrained(folder)
        return str(folder)


def _mapping(name: str, word: str) -> dict[str, Any]:
    spec = structure(name, word)
    if not isinstance(spec, dict):
        raise BadOptionType(f"{name} must be a mapping, got {word!r}")
    return {str(key): value for key, value in spec.items()}


def table(lengths: Sequence[int], arms: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: for each arm the middle of its seeds and, in brackets, the lowest and highest; x: the ratio to the first arm
    at its trained length."""
    first = next(iter(arms.values()))[0]
    reference = first["perplexity"].get(str(first["trained_length"]))
    lines = [f"| arm | {' | '.join(map(str, lengths))} |", "|---|" + "---|" * len(lengths)]
    for name, runs in arms.items():
        cells = [_cell([one["perplexity"].get(str(length)) for one in runs], reference) for length in lengths]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float | None], reference: float | None) -> str:
    if any(value is None for value in values):
        return "cannot read"
    ((low, middle, high),) = spread([[value] for value in values if value is not None])
    several = f" ({low:.2f} to {high:.2f})" if len(values) > 1 else ""
    return f"{middle:.2f}{several}" + (f" x{middle / reference:.2f}" if reference else "")


def curve(name: str, runs: list[dict[str, Any]]) -> Curve:
    """An arm's line: dashed where it was not trained."""
    where = tuple(float(length) for length in runs[0]["perplexity"])
    values = spread([list(one["perplexity"].values()) for one in runs])
    return Curve(name, where, values, dashed=runs[0]["of"]["config"].get("max_steps") == 0)


def effect(chosen: Settings) -> dict[str, Any]:
    """Carry a study out, and write results.json, table.md and picture.png.

    Raises:
        PospatchError: as of the runs; BadOption where the folder holds runs of other settings.
    """
    try:
        results = Effect(chosen).carry_out()
    except Interrupted as stopped:
        return stopped.ended
    folder, arms = write(chosen.output_dir, chosen, results), results["arms"]
    lines = table(chosen.lengths, arms)
    write_text(folder / "table.md", lines)
    mark = next(iter(arms.values()))[0]["trained_length"]
    draw(
        folder / "picture.png", [curve(name, runs) for name, runs in arms.items()], title=chosen.title,
        across="context, tokens", up=f"perplexity of the last {chosen.scored}", mark=mark, ratios=True,
    )  # fmt: skip
    print(f"{lines}wrote results.json, table.md and picture.png in {folder}", flush=True)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Run from flags."""
    carry_out(lambda: effect(settings(Settings, argv)))
