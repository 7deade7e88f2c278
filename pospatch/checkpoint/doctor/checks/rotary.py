"""Rotary positions: what config.json says against what transformers computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pospatch.checkpoint._numbers import LARGEST, finite, wrong_numbers
from pospatch.checkpoint.doctor._claims import PARAMETERS, PLAIN, RENAMED, Stated
from pospatch.checkpoint.doctor._evidence import Evidence
from pospatch.checkpoint.doctor._finding import Finding, error, note, warning
from pospatch.checkpoint.doctor.checks._registry import check
from pospatch.errors import short

MOVE = "write it as rope_parameters alone: {}, and delete the other spellings from config.json"
NEEDS_ORIGINAL = ("yarn", "longrope", "llama3")
THETA = 10000.0


@check
def refused(seen: Evidence) -> Iterator[Finding]:
    """transformers cannot read the config at all."""
    used = seen.used
    if seen.kind in ("model", "gguf") and used.config is None and used.failure:
        yield error(
            used.failure, "a config that transformers 5 reads", "correct it, or load it with the version that wrote it"
        )


@check
def unknown_type(seen: Evidence) -> Iterator[Finding]:
    """A rope_type that transformers has no formula for: a bare KeyError when the model is built."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for label, parameters in _used(seen).items():
        kind = str(parameters.get("rope_type"))
        validated = hasattr(seen.used.text, f"_validate_{kind}_rope_parameters")  # also a family's own type
        if kind not in ROPE_INIT_FUNCTIONS and kind not in PLAIN and not validated:
            remedy = f"write rope_type: {RENAMED[kind]!r}" if kind in RENAMED else "write the type that was meant"
            yield error(_at(label, f"rope_type {kind!r}"), f"one of default, {', '.join(ROPE_INIT_FUNCTIONS)}", remedy)


def _used(seen: Evidence) -> dict[str | None, dict[str, Any]]:
    """Rotary parameters that transformers uses, also where the model could not be built from them."""
    if seen.used.rope or seen.used.config is None or seen.used.failure is None:
        return seen.used.rope
    read = getattr(seen.used.text, "rope_parameters", None)
    if not isinstance(read, dict) or not read:
        return {}
    nested: dict[str | None, dict[str, Any]] = {name: each for name, each in read.items() if isinstance(each, dict)}
    return nested or {None: read}


@check
def lost_theta(seen: Evidence) -> Iterator[Finding]:
    """A base of the frequencies that is stated and not used."""
    used = seen.used
    said = seen.claims.thetas
    if used.rotates == "fixed":
        odd = [item for item in said if item.value != THETA]
        if odd:
            yield error(
                f"{used.model_class} computes its rotation with {THETA:g}", _stated(odd), "load it with what wrote it"
            )
        return
    thetas = set(used.thetas.values())
    lost = [item for item in said if not _among(item.value, thetas)]
    if not lost or not thetas:
        return
    got = f"rope_theta {_list(thetas)} in transformers"
    if any(_among(item.value, thetas) for item in said):
        yield warning(got, _stated(lost), MOVE.format("one rope_theta"))
    else:
        yield error(got, _stated(lost), MOVE.format(f'"rope_theta": {lost[0].value!r} inside'))


@check
def lost_scaling(seen: Evidence) -> Iterator[Finding]:
    """A scaling that is stated and not used, wholly or in one of its numbers."""
    used = seen.used.rope
    for group in seen.claims.groups:
        kind = next((item.value for item in seen.claims.scaled if item.where == group.where), None)
        if kind is None or (seen.used.failure and not used):
            continue
        label = group.where.partition(".")[2] or None
        same = [item for name, item in used.items() if item.get("rope_type") == kind and label in (None, name)]
        if not same:
            kinds = sorted({str(item.get("rope_type")) for item in used.values()}) or ["no rotary positions"]
            yield error(
                f"{', '.join(kinds)} in transformers",
                f"{kind} in {group.where} ({_shown(group.value)})",
                _apply(kind, group.value),
            )
        elif odd := [name for name in PARAMETERS if name in group.value and _other(name, group.value, same)]:
            yield error(
                f"{', '.join(f'{name}={same[0].get(name)!r:.60}' for name in odd)} in transformers",
                f"{', '.join(f'{name}={group.value[name]!r:.60}' for name in odd)} in {group.where}",
                MOVE.format("the numbers that are meant"),
            )


def _other(name: str, group: dict[str, Any], used: list[dict[str, Any]]) -> bool:
    value = group[name]
    return value is not None and value == value and all(item.get(name) != value for item in used)


@check
def lost_share(seen: Evidence) -> Iterator[Finding]:
    """A rotated share of the head that is stated and not used."""
    said = seen.claims.shares
    given = [item.get("partial_rotary_factor") or 1.0 for item in seen.used.rope.values()]
    shares = {float(value) for value in given if finite(value)}
    lost = [item for item in said if not _among(item.value, shares)]
    if lost and shares:
        yield error(
            f"a rotated share of {_list(shares)} in transformers",
            _stated(lost),
            MOVE.format(f'"partial_rotary_factor": {lost[0].value!r} inside'),
        )


@check
def original_length(seen: Evidence) -> Iterator[Finding]:
    """The trained length that a scaling starts from: stated and not used, or not stated."""
    said = seen.claims
    stated = [*said.originals]
    stated += [Stated(g.where, g.value["original_max_position_embeddings"]) for g in said.groups
               if finite(g.value.get("original_max_position_embeddings"))]  # fmt: skip
    for label, parameters in seen.used.rope.items():
        kind, used = parameters.get("rope_type"), parameters.get("original_max_position_embeddings")
        if kind not in NEEDS_ORIGINAL or seen.kind != "model":
            continue
        if not stated and said.groups:
            yield warning(
                _at(label, f"{kind} from a trained length of {used}, which is max_position_embeddings"),
                "original_max_position_embeddings in rope_parameters",
                "state it: where max_position_embeddings is the extended length, the frequencies are others",
            )
        elif stated and (lost := [item for item in stated if item.value != used]):
            got = _at(label, f"{kind} from a trained length of {used} in transformers")
            remedy = MOVE.format(f'"original_max_position_embeddings": {lost[0].value!r} inside')
            known = len(lost) < len(stated) and all("." not in item.where for item in stated)
            yield (warning if known else error)(got, _stated(lost), remedy)


@check
def longrope_lists(seen: Evidence) -> Iterator[Finding]:
    """A list of divisors that has not one for each pair of the rotated head."""
    if seen.used.config is None:
        return
    for label, parameters in _used(seen).items():
        if parameters.get("rope_type") != "longrope":
            continue
        pairs = _pairs(seen, label, parameters)
        for name in ("short_factor", "long_factor"):
            values = parameters.get(name)
            if not isinstance(values, list) or not all(finite(value) and value > 0 for value in values):
                got = f"{len(values)} entries, not all above 0" if isinstance(values, list) else f"{values!r:.80}"
                yield error(
                    _at(label, f"{name} of {got}"), "a list of finite numbers above 0", "put the right list there"
                )
            elif pairs is not None and len(values) != pairs:
                yield error(
                    _at(label, f"{name} of {len(values)} entries"),
                    f"{pairs}, one for each pair of dimensions that rotate",
                    "take the list that was found for this model; transformers fails at the first token, or broadcasts it",
                )


def _pairs(seen: Evidence, label: str | None, parameters: dict[str, Any]) -> int | None:
    """Pairs of dimensions that rotate, from the config's shapes."""
    text = seen.used.text.to_dict()  # a config whose layers differ answers no attribute of theirs
    heads, width = text.get("num_attention_heads"), text.get("hidden_size")
    head = text.get("qk_rope_head_dim") or text.get("head_dim")
    if not head and isinstance(heads, int) and isinstance(width, int) and heads > 0:
        head = width // heads
    share = parameters.get("partial_rotary_factor") or 1.0
    return int(head * share) // 2 if isinstance(head, int) and finite(share) else None


@check
def bad_numbers(seen: Evidence) -> Iterator[Finding]:
    """Numbers that transformers takes without a word and that turn positions into nonsense."""
    for label, parameters in _used(seen).items():
        for name, value in wrong_numbers(parameters):
            yield error(
                _at(label, f"{name}={short(value):.60}"), f"a number above 0 and at most {LARGEST:g}", "correct it"
            )
        for low, high in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
            one, other = parameters.get(low), parameters.get(high)
            if finite(one) and finite(other) and one >= other:  # type: ignore[operator]
                yield error(_at(label, f"{low}={one!r}, {high}={other!r}"), f"{high} above {low}", "exchange them")


@check
def unread_rope(seen: Evidence) -> Iterator[Finding]:
    """Rotary settings in the config of a model that has no rotary positions."""
    used, said = seen.used, seen.claims
    if used.failure is None and used.config is not None and not used.rotates and said.thetas and not said.scaled:
        yield note(
            f"{used.model_class}, which has no rotary positions",
            f"nothing of {_stated(said.thetas)}",
            "nothing to do; transformers ignores it",
        )


@check
def older_readers(seen: Evidence) -> Iterator[Finding]:
    """A base of the frequencies that only transformers 5 finds: what reads the older spelling takes 10000 without a word."""
    said = seen.claims.thetas
    beside = [item for item in said if "." not in item.where]
    inside = {item.value for item in said if item.where == "rope_parameters.rope_theta"} - {THETA}
    if inside and not beside:
        yield note(
            f"rope_theta = {_list(inside)} inside rope_parameters alone",
            "the same beside it, where transformers 4 and engines of its time look; they would take 10000",
            f'add "rope_theta": {inside.pop()!r} to config.json if such a reader is meant; transformers 5 keeps the inner one',
        )


@check
def stored_frequencies(seen: Evidence) -> Iterator[Finding]:
    """Frequencies among the weights, which transformers drops, that are not those it computes."""
    names = [name for name in seen.weights.places if name.rpartition(".")[2] == "inv_freq"]
    if not names or seen.files.folder is None or not seen.used.spectra:
        return
    import torch
    from safetensors import safe_open

    place = seen.weights.places[names[0]]
    if seen.weights.shape(names[0]) is None or (seen.weights.shape(names[0]) or (0,))[0] > 2**16:
        return
    with safe_open(seen.files.folder / place, framework="pt") as stored:
        kept = stored.get_tensor(names[0])
    rounding = 2e-5 if kept.dtype == torch.float32 else 1e-2
    near = [
        s
        for s, _ in seen.used.spectra.values()
        if s.shape == kept.shape and torch.allclose(s, kept.float(), rounding, 0.0)
    ]
    if not near:
        yield error(
            "frequencies from the config; those among the weights are dropped",
            f"{names[0]}, which differ",
            "state them in rope_parameters: longrope with the divisors theta ** (-2i / dim) / inv_freq in both lists",
        )


def _apply(kind: str, group: dict[str, Any]) -> str:
    """The call that gives a loaded model the scaling."""
    name = "dynamic_ntk" if kind == "dynamic" else kind
    options = {key: group[key] for key in PARAMETERS if key in group and not isinstance(group[key], list)}
    said = ", ".join(f"{key}={value!r:.40}" for key, value in options.items())
    call = f"pospatch.apply(model, {name!r}{', ' if said else ''}{said})"
    return f"write it as rope_parameters alone, or load with transformers, then {call}"


def _among(value: float, others: set[float]) -> bool:
    return any(abs(value - other) <= 1e-4 * abs(other) for other in others)


def _list(values: set[float]) -> str:
    return " and ".join(f"{value:g}" for value in sorted(values))


def _stated(items: Any) -> str:
    return ", ".join(f"{item.where} = {item.value!r}" for item in items)


def _shown(group: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r:.40}" for name, value in group.items() if name not in ("type", "rope_type"))


def _at(label: str | None, text: str) -> str:
    return text if label is None else f"{text} ({label})"
