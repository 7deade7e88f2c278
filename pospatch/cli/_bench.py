"""`pospatch bench`: what methods cost."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from pospatch.cli._input import lengths_of, made
from pospatch.cli._show import out

if TYPE_CHECKING:
    from pospatch.bench import Report

__all__ = ["bench"]


def bench(
    model: Annotated[
        str, typer.Argument(help="gpt2, llama-135m, bert-22m (random weights), a folder, or smollm2-135m.")
    ],
    methods: Annotated[list[str], typer.Argument(help="Methods, e.g. alibi, rope+yarn:factor=2.")],
    lengths: Annotated[str, typer.Option(help="Lengths in tokens, separated by commas.")] = "512,1024,2048",
    work: Annotated[str, typer.Option(help="Of prefill, decode, train, patch; separated by commas.")] = "prefill",
    level: Annotated[str, typer.Option(help="model, or attention: that of one layer alone.")] = "model",
    repeats: Annotated[int, typer.Option(help="Rounds; each runs all that is compared once.")] = 5,
    clock: Annotated[str, typer.Option(help="wall, or cpu: processor time, for a machine with other work.")] = "wall",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, or a GPU such as cuda.")] = "cpu",
    layers: Annotated[int | None, typer.Option(help="Layers of a named shape, to save time.")] = None,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, each cell in its own process.")] = True,
    reference: Annotated[bool, typer.Option(help="Also run the form that holds whole matrices.")] = True,
    reference_limit: Annotated[
        float, typer.Option(metavar="GIB", help="Leave that form out where its matrices would need more than this.")
    ] = 4.0,
    peers: Annotated[bool, typer.Option(help="Also run others' code for the same method, where installed.")] = False,
    output: Annotated[Path, typer.Option("--output", help="Result path; writes .json and .png.")] = Path("bench"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure time and peak memory against plain attention and the reference form, at growing lengths.

    Examples:
    [b]pospatch bench gpt2 alibi t5_bias --level attention --lengths 1024,2048,4096,8192[/b]
    [b]pospatch bench smollm2-135m self_extend --work prefill,decode --lengths 2048,4096[/b]
    [b]pospatch bench gpt2 alibi --lengths 8192 --reference-limit 16[/b]
    [b]pospatch bench gpt2 rope --work train,decode --peers --repeats 9[/b]
    """
    from pospatch import bench as benchmark
    from pospatch.evaluate._result import beside

    made(output.parent)  # found out now rather than after hours
    report = benchmark.bench(
        model,
        methods,
        works=work.split(","),
        lengths=lengths_of(lengths),
        level=level,
        repeats=repeats,
        clock=clock,
        dtype=dtype,
        device=device,
        layers=layers,
        memory=memory,
        reference=reference,
        reference_limit=reference_limit,
        peers=peers,
        path=output,
    )
    if as_json:
        return typer.echo(json.dumps(asdict(report), indent=2))
    _show(report)
    out.print(f"wrote {beside(output, '.json')} and .png", soft_wrap=True)


def _show(report: Report) -> None:
    table = Table(title=f"{report.model}, {report.level}, {report.dtype}: cost of ours as a ratio to ...")
    for column in ("work", "method", "length", "seconds", "against", "time (middle half)", "peak MB", "peak ratio"):
        table.add_column(column, justify="left" if column in ("work", "method", "against") else "right")
    for row in report.rows:
        first = (row["work"], row["method"], str(row["length"]), f"{row['seconds']['ours']:.4g}")
        for name, seen in row["time_ratio"].items():
            table.add_row(*first, name, _ratio(seen), _megabytes(row, "ours"), _peak_ratio(row, name))
            first = ("", "", "", "")
    out.print(table)
    for entry in report.growth:
        shown = [
            f"{kind} grows as length^{value:.2f}" for kind in ("time", "memory")
            if (value := entry[kind].get("ours")) is not None
        ]  # fmt: skip
        if shown:
            out.print(f"{entry['work']} {entry['method']}: {', '.join(shown)}", highlight=False)
    for note in dict.fromkeys(
        f"{row['method']} at {row['length']}: {row['note']}" for row in report.rows if row["note"]
    ):
        out.print(note, soft_wrap=True)


def _ratio(seen: dict[str, float]) -> str:
    return f"{seen['median']:.2f} ({seen['low']:.2f} to {seen['high']:.2f})"


def _megabytes(row: dict[str, Any], name: str) -> str:
    return f"{row['peak_bytes'][name] / 2**20:.0f}" if "peak_bytes" in row else ""


def _peak_ratio(row: dict[str, Any], name: str) -> str:
    return f"{row['peak_ratio'][name]:.2f}" if "peak_ratio" in row else ""
