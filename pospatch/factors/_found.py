"""What a search found, as data, as files and as options of `apply`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pospatch.errors import BadOption
from pospatch.evaluate._plot import COLOURS, GREY, figure, frame, plain, save_figure
from pospatch.evaluate._result import beside, write_json

__all__ = ["Found"]


@dataclass(kw_only=True)
class Found:
    """The best divisors with their loss, and the losses of what the search began with.

    losses: in nats a token on the needles of the search, by name: found, linear, ntk, yarn (their divisors alone).
    held_out: in nats a token on needles that the search never saw: unpatched, yarn (with its amplitude), found.
    history: best loss after every generation. complete: False where a budget ended the search.
    """

    factor: float
    short_factor: list[float]
    long_factor: list[float]
    length: int
    losses: dict[str, float | None]
    held_out: dict[str, float | None]
    history: list[float]
    evaluations: int
    complete: bool
    record: dict[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """Options of `longrope`: `pospatch.apply(model, "longrope", **found.options)`."""
        return {"factor": self.factor, "short_factor": tuple(self.short_factor), "long_factor": tuple(self.long_factor)}

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON types."""
        return asdict(self)

    def save(self, path: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Write `path` with the suffixes .json and .png and return both paths."""
        written = write_json(beside(path, ".json"), self.to_dict())
        return written, save_figure(self._drawn(), beside(path, ".png"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Found:
        """What `save` wrote.

        Raises:
            BadOption: the file holds something else.
        """
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (TypeError, ValueError, OSError) as error:
            raise BadOption(f"{path} holds no divisors found by pospatch ({error})") from error

    def _drawn(self) -> Any:
        sheet = figure(9.6, 3.6)
        left, right = sheet.subplots(1, 2)
        left.plot(range(len(self.long_factor)), self.long_factor, color=COLOURS[0], label="found", lw=2)
        half = len(self.long_factor)
        ntk = [self.factor ** (index / max(half - 1, 1)) for index in range(half)]
        left.plot(range(half), ntk, color=GREY, ls="--", label="ntk")
        left.axhline(self.factor, color=GREY, ls=":", label="linear")
        left.set_xlabel("pair (fast to slow)")
        left.set_ylabel("divisor of the frequency")
        left.set_title(f"{plain(self.record['model']['name'])}, {self.length} tokens", fontsize=10, loc="left")
        left.legend(frameon=False, fontsize=9)
        right.plot(range(len(self.history)), self.history, "o-", color=COLOURS[0], ms=3)
        for name, style in (("linear", ":"), ("ntk", "--"), ("yarn", "-.")):
            if self.losses.get(name) is not None:
                right.axhline(self.losses[name], color=GREY, ls=style, lw=1, label=name)
        right.set_xlabel("generation")
        right.set_ylabel("loss at needles (nats a token)")
        right.set_title(f"best of {self.evaluations} candidates", fontsize=10, loc="left")
        right.legend(frameon=False, fontsize=9)
        for axes in (left, right):
            frame(axes)
        return sheet
