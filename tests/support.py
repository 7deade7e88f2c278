"""The support table: what the last whole run of the matrix found, as Markdown; `python -m tests.support` writes it anew."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import fields
from pathlib import Path

from pospatch.hosts import HOSTS, Host
from tests.matrix import METHODS, Result, saved_results

SUPPORT = Path(__file__).parent.parent / "SUPPORT.md"
HEAD = """# Families that pospatch reaches

Made by `python -m tests.matrix` from tiny random models of every family that transformers builds from its config alone; nothing
is downloaded. A variant is one class of one family. It passes where at least one method that puts other positions there held in
every check: the output changes, cached decoding gives what one pass gives, left padding changes nothing, a saved model loads as
it was, `remove` brings every bit back; and where every method that does not fit was refused with its reason and left the model
as it was. What a family cannot do natively (no cache, wrong left padding) is not asked of it.
"""


def words(row: Host) -> int:
    """What the first family of a row costs beside its own name: the wiring's, and each field that is set, with its values."""
    ours = [getattr(row, item.name) for item in fields(Host) if item.name not in ("wiring", "families")]
    usual = [item.default for item in fields(Host) if item.name not in ("wiring", "families")]
    return 1 + sum(
        1 + (len(value) if isinstance(value, tuple) else 1)
        for value, was in zip(ours, usual, strict=True)
        if value != was
    )


def costs() -> list[int]:
    """The words that each family of pospatch/hosts added: its name, and for the first of a row the row."""
    return [1 + (words(row) if first else 0) for row in HOSTS for first in (True, *[False] * (len(row.families) - 1))]


def cost() -> str:
    """What a family costs, as a sentence."""
    each = costs()
    detected = sum(result.status == "passes" and result.wiring == "detected" for result in saved_results())
    return (
        f"The {len(each)} families of pospatch/hosts stand in {len(HOSTS)} rows. {each.count(1)} of them added a word, their own "
        f"name, to a row that was there; {len(HOSTS)} brought a row, of {min(map(words, HOSTS))} to {max(map(words, HOSTS))} "
        f"words. The median over all is {statistics.median(each):g} word, the mean {statistics.mean(each):.1f}. "
        f"{detected} variants that pass have no row at all: their wiring is detected, and proven on the model."
    )


def cell(said: str) -> str:
    """One method on one variant."""
    return "+" if said == "holds" else "pads" if said.startswith("holds") else ""


def reason(result: Result) -> str:
    """A reason as one line of a table."""
    return result.reason.replace("|", "/").replace("<", "&lt;").strip()


def passing(results: list[Result]) -> str:
    """A row for each variant that passes."""
    names = list(METHODS)
    rows = [f"| variant | wiring | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for result in results:
        if result.status == "passes":
            cells = " | ".join(cell(result.methods.get(name, "")) for name in names)
            rows.append(f"| {result.variant} | {result.wiring} | {cells} |")
    return "\n".join(rows)


def others(results: list[Result], status: str) -> str:
    """A row for each variant that does not pass, with the reason."""
    rows = ["| variant | reason |", "|---|---|"]
    rows += [f"| {result.variant} | {reason(result)} |" for result in results if result.status == status]
    return "\n".join(rows)


def summary() -> str:
    """Counts by wiring, for the README."""
    results = saved_results()
    passes = [result for result in results if result.status == "passes"]
    wirings = Counter(result.wiring for result in passes)
    refused = sum(result.status == "refused" for result in results)
    by_wiring = "; ".join(f"{wiring} {count}" for wiring, count in wirings.most_common())
    return (
        f"The matrix test builds {len(results)} variants (a class of a family) tiny from their configs: **{len(passes)} pass** "
        f"every check, {refused} are refused with a reason, the others cannot be built from "
        "a config alone. "
        f"By wiring: {by_wiring}. Each with its methods, or its reason: [SUPPORT.md](SUPPORT.md).\n"
    )


def markdown() -> str:
    """The whole page."""
    results = saved_results()
    count = Counter(result.status for result in results)
    return (
        f"{HEAD}\n"
        f"**{count['passes']} variants pass**, {count['refused']} are refused with a reason, {count['not built']} cannot be "
        "built here from a config. What transformers' and peft's own tests say of patched models: "
        "[tests/FOREIGN.md](tests/FOREIGN.md).\n\n"
        "`+` holds; `pads`: holds, and pads on the left are counted, since the family hands no positions to its layers; empty: "
        "refused with a reason.\n\n"
        f"## What a family costs\n\n{cost()}\n\n"
        f"## Passing\n\n{passing(results)}\n\n## Refused\n\n{others(results, 'refused')}\n\n"
        f"## Not built\n\n{others(results, 'not built')}\n"
    )


def write() -> None:
    """Write SUPPORT.md."""
    SUPPORT.write_text(markdown(), encoding="utf-8")


if __name__ == "__main__":
    write()
