"""Runs the cells of a benchmark and collects their rows."""

from __future__ import annotations

import gc
import itertools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from pospatch.bench._build import build, config_of
from pospatch.bench._cell import Cell, method_of
from pospatch.bench._layer import has_reference
from pospatch.bench._memory import peak
from pospatch.bench._peers import peers_of
from pospatch.bench._report import Report, machine
from pospatch.bench._timing import CLOCKS, alternate, ratio
from pospatch.errors import BadOption, UnsupportedHost, suggest
from pospatch.evaluate._progress import bar
from pospatch.evaluate._result import Cells, versions

__all__ = ["bench"]

MATRICES = 4  # whole (heads, query, key) float32 matrices that a reference form holds at once, about


def bench(
    model: str,
    methods: Sequence[str],
    *,
    works: Sequence[str] = ("prefill",),
    lengths: Sequence[int] = (512, 1024, 2048),
    level: str = "model",
    repeats: int = 5,
    clock: str = "wall",
    memory: bool = True,
    reference: bool = True,
    reference_limit: float = 4.0,
    peers: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
    batch: int = 1,
    layers: int | None = None,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Report:
    """Measure methods on a model at growing lengths.

    Args:
        model: a named shape (see SHAPES) with random weights, a folder or a Hub repository.
        methods: such as "alibi", "rope+yarn:factor=2".
        works: of prefill, decode, train, patch (apply and remove, beside a forward pass over `length` tokens).
        lengths: in tokens.
        level: "model" runs the whole model; "attention" the attention of one layer, where differences are largest.
        repeats: measured rounds; in each, everything that is compared runs once.
        clock: "wall", or "cpu" for the processor time of this process, which other processes disturb less.
        memory: also measure peak memory, each cell in a process of its own.
        reference: also run the form that holds whole matrices: at the level of attention as the methods' authors write
            it, on a model its eager attention.
        reference_limit: GiB of whole matrices beyond which the reference is left out, which its rows then say.
        peers: also run other people's code for the same method, where it is installed.
        layers: of a named shape, fewer than its own to save time.
        path: where to write the report (.json and .png) and, meanwhile, finished rows to go on from.

    Raises:
        BadOption: an unknown work, level, clock, shape or method, a method that does not act at that level, or a limit
            that is no positive number; what cannot be written.
    """
    if clock not in CLOCKS:
        raise BadOption(f"bench: clock={clock!r}.{suggest(clock, CLOCKS)} It is one of {', '.join(CLOCKS)}")
    if repeats < 1 or not methods or not works or not lengths:
        raise BadOption("bench: needs repeats of at least 1, and at least one method, work and length")
    if not reference_limit > 0:  # nan too
        raise BadOption(
            f"bench: reference_limit={reference_limit:g} must be above 0 GiB; reference=False leaves the form out"
        )
    cells = [
        Cell(
            model=model, work=work, length=length, method=name, options=options, level=level, dtype=dtype,
            device=device, batch=batch, layers=layers,
        )
        for work, (name, options), length in itertools.product(works, map(method_of, methods), sorted(lengths))
    ]  # fmt: skip
    plans = [(cell, *_compared(cell, reference, reference_limit, peers)) for cell in cells]
    done = Cells(path, {"task": "bench", "repeats": repeats, "clock": clock, "memory": memory,
                        "machine": machine(device), "versions": versions()})  # fmt: skip
    todo = [plan for plan in plans if _key(*plan) not in done]
    with bar("bench", len(todo) * (repeats + 1 + int(memory)), progress) as advance:
        for cell, compared, note in todo:
            done[_key(cell, compared, note)] = _row(cell, compared, note, repeats, clock, memory, advance)
    report = Report.of(
        [done[_key(*plan)] for plan in plans],
        model=model, level=level, clock=clock, repeats=repeats, dtype=dtype, device=device,
    )  # fmt: skip
    if path is not None:
        report.save(path)
        done.finish()
    return report


def _built(compared: dict[str, Cell], note: str) -> tuple[dict[str, Callable[[], object]], str]:
    """The work of each, without others' code that cannot do it."""
    works, notes = {}, [note] if note else []
    for name, each in compared.items():
        try:
            works[name] = build(each)
        except UnsupportedHost as error:
            if each.peer is None:
                raise
            notes.append(f"{name} not run: {error}")
    return works, "; ".join(notes)


def _key(cell: Cell, compared: dict[str, Cell], note: str) -> str:
    return json.dumps([asdict(cell), list(compared), note])


def _compared(cell: Cell, reference: bool, limit: float, peers: bool) -> tuple[dict[str, Cell], str]:
    """What runs beside each other, by name, and why something does not."""
    found, note = {"ours": cell, "plain": replace(cell, method=None, options={}, form="plain")}, ""
    if cell.level == "attention":  # what is plain depends on whether the method re-indexes a rotation
        found["plain"] = replace(cell, form="plain")
    if cell.work == "patch":
        found["plain"] = replace(found["plain"], work="prefill")
    if reference and has_reference(cell):
        size = _matrices(cell)
        if size <= limit:
            found["reference"] = replace(cell, form="reference")
        else:
            note = (
                f"reference not run: whole matrices of about {size:.3g} GiB, above {limit:g}; "
                "raise reference_limit (--reference-limit) where there is memory for them"
            )
    if peers and cell.level == "model":
        found |= {name: replace(cell, peer=name) for name in peers_of(cell)}
    return found, note


def _matrices(cell: Cell) -> float:
    return MATRICES * cell.batch * config_of(cell).num_attention_heads * cell.length**2 * 4 / 2**30


def _row(
    cell: Cell,
    compared: dict[str, Cell],
    note: str,
    repeats: int,
    clock: str,
    memory: bool,
    advance: Callable[[], None],
) -> dict[str, Any]:
    ran = 0

    def step() -> None:
        nonlocal ran
        ran += 1
        if ran % len(compared) == 0:
            advance()

    row: dict[str, Any] = {"work": cell.work, "method": cell.method, "options": cell.options, "length": cell.length}
    works, note = _built(compared, note)
    compared = {name: compared[name] for name in works}
    times = alternate(works, repeats=repeats, clock=clock, device=cell.device, step=step)
    del works
    gc.collect()
    row["seconds"] = {name: ratio(each, [1.0] * len(each)).median for name, each in times.items()}
    row["time_ratio"] = {name: vars(ratio(times["ours"], each)) for name, each in times.items() if name != "ours"}
    if memory:
        row["peak_bytes"] = {name: peak(each) for name, each in compared.items()}
        row["peak_ratio"] = {
            name: row["peak_bytes"]["ours"] / max(1, size) for name, size in row["peak_bytes"].items() if name != "ours"
        }
        advance()
    return {**row, "note": note}
