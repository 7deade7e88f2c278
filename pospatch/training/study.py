"""What the recipes beyond text share: settings from YAML and flags, a training loop under accelerate, results, a picture."""

from __future__ import annotations

import time
from argparse import ArgumentDefaultsHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
import torch.nn as nn
from torch import Tensor

from pospatch.errors import BadOptionType
from pospatch.evaluate._plot import logarithmic, save_figure
from pospatch.evaluate._progress import bar
from pospatch.evaluate._result import write_json
from pospatch.training.arguments import Parser, parsed
from pospatch.training.options import entry, structure

__all__ = ["ANEW", "Curve", "bars", "draw", "fit", "progress", "settings", "spread", "stacks", "write"]

ANEW = "nothing is written before the end, so the same command begins anew"  # said of a recipe that does not resume

Some = TypeVar("Some")


def settings(kind: type[Some], argv: Sequence[str] | None = None) -> Some:
    """A dataclass of settings from `--config FILE` and flags of the same names, which win.

    Raises:
        UnknownName: a key or flag that does not exist; with a suggestion.
        BadOption, BadOptionType: a file or value that cannot be used.
    """
    parser = Parser(kind, allow_abbrev=False, formatter_class=ArgumentDefaultsHelpFormatter)  # type: ignore[arg-type]
    return kind(**parsed(parser, argv))


def stacks(word: str) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Named patches written as YAML, each as `pospatch.apply` takes it; an empty one changes nothing.

    >>> stacks("{2-D: {method: rope_2d, rope_theta: 10}, as it is: []}")
    {'2-D': [('rope_2d', {'rope_theta': 10})], 'as it is': []}

    Raises:
        BadOptionType: no mapping of names to patches.
    """
    spec = structure("patches", word)
    if not isinstance(spec, dict) or not spec:
        raise BadOptionType(f"patches must be {{NAME: {{method: METHOD, option: value}}, ...}}, got {word!r}")
    return {
        str(name): [entry(item) for item in (one if isinstance(one, list) else [one])] for name, one in spec.items()
    }


def progress(name: str, total: int) -> AbstractContextManager[Callable[[], None]]:
    """A bar on stderr with the time left, in the process that writes; what it gives moves it by one of `total` steps."""
    return bar(name, total, _first())


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    *,
    steps: int,
    rate: float,
    decay: float = 0.01,
    name: str = "training",
) -> dict[str, float]:
    """Train with AdamW: the rate rises over a tenth of the steps and falls to zero; `loss` draws its own batch, `name` stands at
    the bar.

    It runs on the CPU, also where there is a GPU.
    Under accelerate with several processes each draws other batches, and gradients are averaged.

    Returns:
        the mean loss of the last tenth of the steps, and seconds.
    """
    from accelerate import Accelerator
    from torch.optim.lr_scheduler import OneCycleLR

    accelerator = Accelerator(cpu=True)  # the recipes draw and score their batches there
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=decay)
    schedule = OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    torch.manual_seed(torch.initial_seed() + accelerator.process_index)
    running, optimizer = accelerator.prepare(model.train(), optimizer)
    begun, losses = time.monotonic(), []
    with progress(name, steps) as advance:
        for _ in range(steps):
            value = loss(running)
            optimizer.zero_grad()
            accelerator.backward(value)
            accelerator.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(value.detach()))
            advance()
    model.eval()
    late = losses[-max(1, steps // 10) :]
    return {"loss": sum(late) / len(late), "seconds": round(time.monotonic() - begun, 1)}


def spread(runs: Sequence[Sequence[float]]) -> tuple[tuple[float, float, float], ...]:
    """(lowest, middle, highest) over runs, at each place."""
    return tuple((min(values), median(values), max(values)) for values in zip(*runs, strict=True))


def _first() -> bool:
    """True in the process that writes."""
    from accelerate import PartialState

    return bool(PartialState(cpu=True).is_main_process)


def write(folder: str, chosen: Any, results: dict[str, Any]) -> Path:
    """Put settings and results into results.json of a folder; returns the folder."""
    path = Path(folder)
    if not _first():
        return path
    content = {"settings": asdict(chosen), **results}
    write_json(path / "results.json", content)
    return path


@dataclass(frozen=True)
class Curve:
    """One line of a picture: its name, and values with the spread over seeds (low, middle, high) at each place."""

    name: str
    where: tuple[float, ...]
    values: tuple[tuple[float, float, float], ...]
    dashed: bool = False


def bars(path: Path, names: Sequence[str], panels: Mapping[str, Sequence[float]]) -> None:
    """A PNG with a bar for each name, one panel beside the other; `panels` holds the values by title."""
    from matplotlib.figure import Figure

    if not _first():
        return
    figure = Figure(figsize=(7.2, 0.9 + 0.45 * len(names)), dpi=110, layout="constrained")
    for axes, (title, values) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
    ):
        axes.bar_label(axes.barh(names, values, height=0.6), padding=3, fontsize=8)
        axes.set(title=title)
        axes.margins(x=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()  # shared: the first name stands at the top
    save_figure(figure, path)


def draw(
    path: Path,
    curves: Sequence[Curve],
    *,
    title: str,
    across: str,
    up: str,
    mark: float | None = None,
    ratios: bool = False,
) -> None:
    """Curves with their spread as a PNG of about 40 kB; a vertical line at `mark`, what the model was trained for. Where `ratios`
    are what counts, values that lie far apart get a logarithmic axis."""
    from matplotlib.figure import Figure

    if not _first():
        return
    figure = Figure(figsize=(6.4, 3.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        low, middle, high = zip(*curve.values, strict=True)
        (line,) = axes.plot(curve.where, middle, "o--" if curve.dashed else "o-", label=curve.name, markersize=4)
        axes.fill_between(curve.where, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    if mark is not None:
        axes.axvline(mark, color="0.6", linewidth=1, linestyle=":")
    axes.set(title=title, xlabel=across, ylabel=up)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(alpha=0.25)
    values = [value for curve in curves for each in curve.values for value in each]
    if ratios and max(values) > 4 * min(values):
        logarithmic(axes)
    if len(curves) > 5:  # they would lie over it
        figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    else:
        axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)
