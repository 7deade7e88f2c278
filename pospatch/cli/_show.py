"""Tables and descriptions on the terminal."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

__all__ = ["describe", "out", "show_rows"]

out = Console(highlight=False)


def show_rows(rows: list[dict[str, Any]]) -> None:
    table = Table(*(name for name in rows[0] if name != "answers"))
    for row in rows:
        shown = [value for name, value in row.items() if name != "answers"]
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in shown))
    out.print(table)


def describe(name: str, as_json: bool) -> None:
    from inspect import cleandoc

    from pospatch import inspection, registry

    if as_json:
        return typer.echo(json.dumps({name: inspection.methods()[name]}, indent=2))
    method = registry.method_class(name)
    out.print(f"[b]{name}[/b]  ({method.family}, site: {method.slot}, needs: {method.needs})\n")
    out.print(cleandoc(method.__doc__ or ""), markup=False)
    out.print("\nOptions:")
    for item in fields(method):
        default = "required" if item.default is MISSING else f"default {item.default}"
        out.print(f"  {item.name} ({item.type}): {default}", markup=False)
