"""A comparison as Markdown, and as one HTML file that needs no network and runs no script."""

from __future__ import annotations

import base64
import json
from html import escape
from typing import Any

from pospatch.comparison._entries import CONTROL
from pospatch.evaluate._markdown import escaped

__all__ = ["html", "markdown", "table"]

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1b1b;--soft:#5b5b5b;--line:#d9d9d9;--back:#fff;--best:#e3f3ec}
@media (prefers-color-scheme:dark){:root{--ink:#eee;--soft:#aaa;--line:#444;--back:#161616;--best:#17382c}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:68rem;padding:1.5rem 1rem 3rem;background:var(--back);color:var(--ink);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 .25rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}
p{margin:.5rem 0}.soft{color:var(--soft)}.wide{overflow-x:auto;border:1px solid var(--line);border-radius:.4rem}
table{overflow-wrap:normal;border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.45rem .7rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th{font-weight:600;font-size:.85rem;color:var(--soft);white-space:normal;vertical-align:bottom}
tr:last-child td{border-bottom:0}
td:nth-child(2),th:nth-child(2){text-align:left;white-space:normal;min-width:9rem;overflow-wrap:anywhere}
tr.best td{background:var(--best)}tr.control td{color:var(--soft);font-style:italic}
img{display:block;width:100%;min-width:40rem;height:auto;background:#fff}
pre{overflow-x:auto;padding:.75rem;border:1px solid var(--line);border-radius:.4rem;font-size:.8rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;margin:.5rem 0}dt{color:var(--soft)}dd{margin:0}
@media (max-width:30rem){th,td{padding:.4rem .5rem}
td:nth-child(2),th:nth-child(2){min-width:7rem}dl{grid-template-columns:1fr}dd{margin-bottom:.4rem}body{padding:1rem .75rem 2rem}}
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def _columns(content: dict[str, Any]) -> list[str]:
    lengths = [f"perplexity at {length}" for length in content["lengths"]]
    return ["rank", "method", *lengths, f"change at {content['entries'][0]['short']['length']}", "time", "memory"]


def _rows(content: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(class, cells) of every row, in the order of the rank."""
    rows = []
    best = next((each["label"] for each in content["entries"] if each["rows"][-1]["perplexity"] is not None), None)
    for rank, each in enumerate(content["entries"], start=1):
        values = ["cannot read" if row["n"] == 0 else _number(row["perplexity"]) for row in each["rows"]]
        label = each["label"] + (" (untrained)" if each["needs"] == "training" else "")
        cells = [str(rank), label, *values, _percent(each), _times(each["time"]), _times(each["memory"])]
        kind = "best" if each["label"] == best else "control" if each["label"] == CONTROL else ""
        rows.append((kind, cells))
    return rows


def _number(value: float | None) -> str:
    if value is None:
        return "not finite"
    return f"{value:.2f}" if value < 1000 else f"{value:.0f}" if value < 1e6 else f"{value:.2e}"


def _percent(entry: dict[str, Any]) -> str:
    percent, error = entry["short"]["percent"], entry["short"]["error"]
    if entry["label"] == CONTROL or percent is None:
        return "–"
    return f"{percent:+.2f} % ± {200 * error:.2f}"


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} ×"


def _notes(content: dict[str, Any]) -> list[str]:
    options, entries = content["options"], content["entries"]
    notes = [
        f"Perplexity of the last {options['k']} tokens of {options['windows']} windows ({entries[0]['rows'][0]['n']} tokens "
        "a length). Windows of every length end at the same tokens, so only the context differs.",
        "Ranked by perplexity at the longest length. The change is that of the perplexity against the unpatched model at a "
        "length it knew, on the same tokens, with twice the standard error over tokens.",
        "Time (the fastest window) and memory are those of one forward at the longest length, as multiples of the unpatched "
        "model's, on this machine and what else ran on it.",
    ]
    if any(each["needs"] == "training" for each in entries):
        notes.append("Methods marked (untrained) need training; here they stand on the pretrained weights as they are.")
    if not any(row["n"] for each in entries if each["label"] == CONTROL for row in each["rows"][-1:]):
        notes.append(
            "The unpatched model cannot read the longest length, so there is no multiple of its time and memory."
        )
    return notes


def table(content: dict[str, Any]) -> list[list[str]]:
    """The head and the rows of the table."""
    return [_columns(content), *(cells for _, cells in _rows(content))]


def markdown(content: dict[str, Any]) -> str:
    """Heading, table and notes."""
    rows = table(content)
    lines = [f"| {' | '.join(escaped(cell) for cell in row)} |" for row in rows]
    lines.insert(1, "|" + " ---: | --- |" + " ---: |" * (len(rows[0]) - 2))
    head = f"# {escaped(content['model']['name'])}: positional methods compared\n\n"
    notes = "\n".join(f"- {escaped(note)}" for note in _notes(content))
    return (
        head
        + "\n".join(lines)
        + f"\n\n![perplexity by length, and the change at a known length](comparison.png)\n\n{notes}\n"
    )


def html(content: dict[str, Any], picture: bytes) -> str:
    """The whole report in one file: table, picture, protocol and all numbers."""
    name = escape(content["model"]["name"])
    head = "".join(f"<th scope=col>{escape(column)}</th>" for column in _columns(content))
    body = "".join(
        f"<tr class='{kind}'>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for kind, cells in _rows(content)
    )
    facts = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in _facts(content).items())
    notes = "".join(f"<p>{escape(note)}</p>" for note in _notes(content))
    data = escape(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))
    image = base64.b64encode(picture).decode()
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        f'<meta http-equiv=Content-Security-Policy content="{_POLICY}">'
        f"<title>{name}: positional methods compared</title><style>{_STYLE}</style></head><body>"
        f"<h1>{name}: positional methods compared</h1><p class=soft>{escape(_lead(content))}</p>"
        f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f"<h2>Perplexity by length, and the change at a known length</h2>"
        "<div class=wide><img alt='Left: perplexity by length. Right: change of the loss at a known length.' "
        f"src='data:image/png;base64,{image}'></div>"
        f"<h2>How it was measured</h2>{notes}<dl>{facts}</dl>"
        f"<details><summary>All numbers (JSON)</summary><pre>{data}</pre></details></body></html>\n"
    )


def _lead(content: dict[str, Any]) -> str:
    first = content["entries"][0]
    longest, value = content["lengths"][-1], first["rows"][-1]["perplexity"]
    if value is None:
        return f"Nothing read {longest} tokens."
    return f"Best at {longest} tokens: {first['label']}, perplexity {_number(value)}."


def _facts(content: dict[str, Any]) -> dict[str, str]:
    model, text, options = content["model"], content["text"], content["options"]
    trained = model["positions"].get("trained_length")
    return {
        "model": f"{model['class']}, {model['parameters'] / 1e6:.1f} M parameters, {model['dtype']}, {model['attention']}",
        "trained length": f"{trained} tokens" if trained else "not stated",
        "text": f"{text['characters']} characters, begins {text['begins']!r}, SHA-256 {text['sha256']}",
        "device": f"{model['device']}, {options['threads']} threads, {content['seconds']} s in this run",
        "versions": ", ".join(f"{package} {version}" for package, version in content["versions"].items()),
    }
