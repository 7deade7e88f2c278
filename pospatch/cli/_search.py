"""pospatch search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pospatch.cli._input import load, made, tokenizer_of
from pospatch.cli._show import out
from pospatch.cli._types import DataType, ModelPath, Text

__all__ = ["search"]


def search(
    model: ModelPath,
    length: Annotated[int, typer.Option(help="Tokens to be read, above the trained length.")],
    text: Text = "kjv",
    needles: Annotated[int, typer.Option(help="Questions that each candidate is asked.")] = 8,
    evaluations: Annotated[int | None, typer.Option(help="Candidates measured at most in this call.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Minutes at most in this call.")] = None,
    population: Annotated[int, typer.Option(help="Candidates of the first generation.")] = 64,
    generations: Annotated[int, typer.Option(help="Generations after the first.")] = 40,
    mutations: Annotated[int, typer.Option(help="Changed candidates a generation.")] = 16,
    crossovers: Annotated[int, typer.Option(help="Mixed candidates a generation.")] = 16,
    parents: Annotated[int, typer.Option(help="Candidates that stay and have children.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of candidates and needles.")] = 0,
    output: Annotated[Path, typer.Option("--output", help="Result path; writes .json and .png.")] = Path("factors"),
    dtype: DataType = "float32",
) -> None:
    """Find LongRoPE's divisors for a length by evolutionary search; goes on where it was interrupted or its budget ended.

    Examples:
    [b]pospatch search smollm2-135m --length 16384 --minutes 60[/b]
    [b]pospatch search ./model --length 32768 --evaluations 500 --text book.txt --output factors[/b]
    """
    from pospatch import assets
    from pospatch.evaluate._result import beside
    from pospatch.factors import Evolution
    from pospatch.factors import search as run

    plan = Evolution(
        population=population,
        generations=generations,
        mutations=mutations,
        crossovers=crossovers,
        parents=parents,
        seed=seed,
    )
    read = assets.text(text)
    made(output.parent)  # found out now rather than after hours
    tokenizer, loaded = tokenizer_of(model, needed=True), load(model, "AutoModelForCausalLM", dtype)
    found = run(
        loaded, tokenizer, read, length=length, needles=needles, evolution=plan, evaluations=evaluations, minutes=minutes,
        path=output,
    )  # fmt: skip
    for head, losses in (("needles of the search", found.losses), ("needles it never saw", found.held_out)):
        shown = ", ".join(f"{name} {'not finite' if loss is None else f'{loss:.3f}'}" for name, loss in losses.items())
        out.print(f"loss at {head} (nats a token): {shown}", soft_wrap=True)
    ended = "all generations" if found.complete else "the budget ended it; the same command goes on from here"
    out.print(f"{found.evaluations} candidates, {ended}")
    written, picture = beside(output, ".json"), beside(output, ".png")
    out.print(f"wrote {written} and {picture}; pospatch apply {model} longrope takes its factor, short_factor and "
              "long_factor, and in Python: apply(model, 'longrope', **Found.load(path).options)", soft_wrap=True,
              markup=False)  # fmt: skip
