"""RULER's documents: lm-eval's own generators where they need no data, and its wording around a local text elsewhere."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

from pospatch.errors import BadOption
from pospatch.evaluate._harness import no_download, quiet

__all__ = ["LOCAL", "SUBTASKS", "documents"]

# Needles in a text: keys hidden, values a key, keys asked for, what the values are.
LOCAL: dict[str, tuple[int, int, int, str]] = {
    "niah_single_2": (1, 1, 1, "numbers"),
    "niah_single_3": (1, 1, 1, "uuids"),
    "niah_multikey_1": (4, 1, 1, "numbers"),
    "niah_multivalue": (1, 4, 1, "numbers"),
    "niah_multiquery": (4, 1, 4, "numbers"),
}
_GENERATED: dict[str, dict[str, str]] = {
    "niah_single_1": {"type_haystack": "repeat", "type_needle_k": "words", "type_needle_v": "numbers"},
    "niah_multikey_2": {"type_haystack": "needle", "type_needle_k": "words", "type_needle_v": "numbers"},
    "niah_multikey_3": {"type_haystack": "needle", "type_needle_k": "uuids", "type_needle_v": "uuids"},
}
_NEW_TOKENS = {"vt": 30, "cwe": 120, "fwe": 50}
SUBTASKS = (*_GENERATED, *LOCAL, "vt", "cwe", "fwe")


def new_tokens(subtask: str) -> int:
    """Tokens that a subtask lets the model generate; they count towards the length."""
    return _NEW_TOKENS.get(subtask, 128)


def documents(subtask: str, tokenizer: Any, length: int, samples: int, seed: int, text: str) -> list[dict[str, Any]]:
    """Documents of one subtask and length, as lm-eval's RULER tasks hold them.

    Raises:
        BadOption: the length has no room for the subtask.
    """
    import numpy

    state, numpy_state = random.getstate(), numpy.random.get_state()
    random.seed(f"{seed}/{subtask}/{length}")  # its generators draw from the global sources
    numpy.random.seed(seed + length)
    try:
        with no_download(), quiet():
            made = _made(subtask, tokenizer, length, samples, text)
    finally:
        random.setstate(state)
        numpy.random.set_state(numpy_state)
    if len(made) < samples:
        raise BadOption(f"RULER's {subtask} has no room in {length} tokens: give longer lengths or leave it out")
    return made


def _made(subtask: str, tokenizer: Any, length: int, samples: int, text: str) -> list[dict[str, Any]]:
    from lm_eval.tasks.ruler import cwe_utils, fwe_utils, niah_utils, prepare_niah, vt_utils

    if subtask in LOCAL:
        return [_hidden(subtask, tokenizer, length, index, text, prepare_niah, niah_utils) for index in range(samples)]
    if subtask in _GENERATED:
        how = _GENERATED[subtask]
        try:
            made: list[dict[str, Any]] = prepare_niah.generate_samples(
                prepare_niah.get_haystack(type_haystack=how["type_haystack"]),
                max_seq_length=length,
                template=niah_utils.TEMPLATE,
                num_samples=samples,
                TOKENIZER=tokenizer,
                **how,
            )
        except ValueError:
            return []
        return made
    least = {"vt": 640, "cwe": 512, "fwe": 256}[subtask]  # below it lm-eval's generators do not end
    if length < least:
        return []
    make: dict[str, Callable[[], Any]] = {
        "vt": lambda: _tracked(vt_utils, tokenizer, length, samples),
        "cwe": lambda: cwe_utils.sys_word_pair_random(num_samples=samples, max_seq_length=length, tokenizer=tokenizer),
        "fwe": lambda: fwe_utils.sys_kwext(tokenizer=tokenizer, max_seq_length=length, num_samples=samples),
    }
    return list(make[subtask]())


def _tracked(utils: Any, tokenizer: Any, length: int, samples: int) -> Any:
    example = utils.sys_vartrack_w_noise_random(tokenizer=tokenizer, num_samples=1, max_seq_length=500, incremental=5)[
        0
    ]
    return utils.sys_vartrack_w_noise_random(
        tokenizer=tokenizer, num_samples=samples, max_seq_length=length, icl_example=example
    )


def _hidden(
    subtask: str, tokenizer: Any, length: int, index: int, text: str, prepare: Any, utils: Any
) -> dict[str, Any]:
    """One document with needles between the sentences of the text, as long as fits."""
    keys, values, asked, kind = LOCAL[subtask]
    names = [prepare.generate_random("words") for _ in range(keys)]
    answers = {name: [prepare.generate_random(kind) for _ in range(values)] for name in names}
    needles = [
        prepare.NEEDLE.format(type_needle_v=kind, key=name, value=value) for name in names for value in answers[name]
    ]
    random.shuffle(needles)
    wanted = random.sample(names, asked)
    one = asked * values == 1
    query = wanted[0] if asked == 1 else f"{', '.join(wanted[:-1])}, and {wanted[-1]}"
    places = sorted(random.random() for _ in needles)
    sentences = re.split(r"(?<=[.!?])\s+", text[: 12 * length].replace("\n", " "))
    template = utils.TEMPLATE
    if one:
        template = template.replace("Some", "A").replace("are all", "is").replace("are", "is")
    shown = kind[:-1] if one else kind
    prefix = f"The special magic {shown} for {query} mentioned in the provided text {'is' if one else 'are'}"

    def prompt(count: int) -> str:
        out = list(sentences[:count])
        for place, needle in sorted(zip(places, needles, strict=True), reverse=True):
            out.insert(int(place * count), needle)
        return str(template.format(type_needle_v=shown, context=" ".join(out), query=query))

    room = length - new_tokens(subtask) - len(tokenizer(prefix, add_special_tokens=False)["input_ids"])
    count = _most(lambda n: len(tokenizer(prompt(n))["input_ids"]) <= room, len(sentences))
    if count < len(needles):
        raise BadOption(f"RULER's {subtask} has no room in {length} tokens: give longer lengths or leave it out")
    outputs = [value for name in wanted for value in answers[name]]
    return {
        "index": index,
        "input": prompt(count),
        "outputs": outputs,
        "length": len(tokenizer(prompt(count))["input_ids"]) + new_tokens(subtask),
        "max_length": length,
        "gen_prefix": prefix,
    }


def _most(fits: Callable[[int], bool], last: int) -> int:
    """The largest number from 0 to `last` that fits, by halving; -1 where not even 0 does."""
    low, high = -1, last
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
