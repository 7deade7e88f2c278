"""What the model has, and what it can read beyond its trained length, as it is and with methods that need no training."""

from __future__ import annotations

import json
from typing import Any

from pospatch.demo._stage import Stage
from pospatch.evaluate import Result
from pospatch.evaluate.passkey import passkey
from pospatch.evaluate.perplexity import perplexity

__all__ = ["inspected", "passkeys", "perplexities"]


def inspected(stage: Stage) -> dict[str, Any]:
    """The positional mechanism that is there."""
    import pospatch

    stage.head("What positional mechanism the model has")
    seen = pospatch.inspect(stage.model)
    stage.console.print(str(seen), markup=False, soft_wrap=True)
    found: dict[str, Any] = json.loads(json.dumps(seen.to_dict(), default=str))
    return found


def perplexities(stage: Stage) -> list[Result]:
    """Perplexity by position in one pass over a long text."""
    plan = stage.plan
    stage.head(f"Perplexity by position, {plan.length} tokens of {_TITLES.get(plan.text, plan.text)}, no training")
    results = []
    for name, options in ((None, {}), *plan.methods):
        with stage.patched(name, options):
            result = perplexity(stage.model, stage.tokenizer, stage.text, lengths=plan.length, bucket=plan.bucket)
        results.append(result)
        first, last = result.rows[1]["perplexity"], result.rows[-1]["perplexity"]
        stage.say(
            f"  {result.label:<18} tokens {plan.bucket} to {2 * plan.bucket}: {first:6.2f}   "
            f"last {plan.bucket}: {last:8.2f}   ({result.seconds:.0f} s)"
        )
    return results


def passkeys(stage: Stage) -> list[Result]:
    """A five-digit key in a context longer than the trained one."""
    plan = stage.plan
    stage.head(f"A five-digit key hidden in {plan.key_length} tokens of filler, no training")
    chosen = [(name, options) for name, options in plan.methods if name in plan.key_methods]
    results = []
    for name, options in ((None, {}), *chosen):
        with stage.patched(name, options):
            result = passkey(
                stage.model, stage.tokenizer, lengths=plan.key_length, depths=plan.depths, trials=1, controls=0
            )
        results.append(result)
        said = ", ".join(
            f"{row['depth']:.0%} deep: {answer['key']} read as {answer['said']!r}"
            for row in result.rows
            for answer in row["answers"]
        )
        stage.console.print(f"  {result.label:<18} {said}   ({result.seconds:.0f} s)", markup=False, soft_wrap=True)
    return results


_TITLES = {"kjv": "the King James Bible"}
