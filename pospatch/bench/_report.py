"""The numbers of a benchmark with what they were measured on: table, JSON and picture."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from pospatch.bench._timing import exponent
from pospatch.evaluate._result import beside, versions, write_json

__all__ = ["Report", "grouped", "machine"]


@dataclass(kw_only=True)
class Report:
    """Rows, one for each work, method and length; `growth` has the fitted exponents of cost over length."""

    model: str
    level: str
    clock: str
    repeats: int
    dtype: str
    device: str
    rows: list[dict[str, Any]]
    growth: list[dict[str, Any]]
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)

    @classmethod
    def of(cls, rows: list[dict[str, Any]], **about: Any) -> Report:
        """A report of these rows, with the machine and the growth filled in."""
        load = list(os.getloadavg()) if hasattr(os, "getloadavg") else None
        return cls(rows=rows, growth=_growth(rows), machine={**machine(about["device"]), "load": load}, **about)

    def save(self, path: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Write `path` with the suffixes .json and .png and return both; the numbers first."""
        from pospatch.bench._plot import draw
        from pospatch.evaluate._plot import save_figure

        data = write_json(beside(path, ".json"), asdict(self))
        return data, save_figure(draw(self), beside(path, ".png"))


def machine(device: str) -> dict[str, Any]:
    """What the numbers belong to: processor, cores, threads and GPU."""
    found: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def grouped(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The rows of each (work, method), by length."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        label = row["method"] + "".join(f" {key}={value}" for key, value in row["options"].items())
        found.setdefault((row["work"], label), []).append(row)
    return found


def _growth(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for (work, method), each in grouped(rows).items():
        entry: dict[str, Any] = {"work": work, "method": method, "time": {}, "memory": {}}
        for name, kind in (("time", "seconds"), ("memory", "peak_bytes")):
            for form in each[0].get(kind, {}):
                there = [row for row in each if form in row[kind]]
                entry[name][form] = exponent([row["length"] for row in there], [row[kind][form] for row in there])
        found.append(entry)
    return found
