"""Records of pospatch, and adapters whose base may have been changed."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from pospatch.checkpoint import _base
from pospatch.checkpoint._record import methods_of
from pospatch.checkpoint._save import is_patch_tensor
from pospatch.checkpoint.doctor._claims import PLAIN
from pospatch.checkpoint.doctor._evidence import Evidence
from pospatch.checkpoint.doctor._finding import Finding, error, note, warning
from pospatch.checkpoint.doctor._recorded import bare, recorded_spectrum
from pospatch.checkpoint.doctor.checks._registry import check
from pospatch.checkpoint.doctor.checks.lengths import tokenizer_length
from pospatch.errors import CheckpointError

SAVE = "save it again with pospatch"


@check
def record(seen: Evidence) -> Iterator[Finding]:
    """A patch record that this pospatch cannot read: an unknown version, method or option."""
    if seen.record is None:
        return
    try:
        methods_of(seen.record)
    except CheckpointError as why:
        yield error(str(why), "a record that this pospatch reads", f"pip install -U pospatch, or {SAVE}")
        return
    if seen.own:
        yield note(
            f"only pospatch reads it: {' + '.join(method.name for method in seen.stack)}",
            "import pospatch before it is loaded",
            "without pospatch it is refused; pospatch.export writes what plain transformers reads, where that is exact",
        )


@check
def record_version(seen: Evidence) -> Iterator[Finding]:
    """Saved by a newer pospatch than this one."""
    import pospatch

    version = seen.record.get("pospatch") if isinstance(seen.record, dict) else None
    if isinstance(version, str) and _parts(version) > _parts(pospatch.__version__):
        yield warning(f"saved by pospatch {version:.20}", f"at most {pospatch.__version__}", "pip install -U pospatch")


def _parts(version: str) -> list[int]:
    return [int(part) if part.isdigit() else 0 for part in version.split(".")[:3]]


@check
def record_differs(seen: Evidence) -> Iterator[Finding]:
    """A native record beside rope_parameters that say something else: transformers reads these, pospatch the record."""
    wanted = recorded_spectrum(seen)
    used = [seen.used.spectra[label] for label in (None, "full_attention") if label in seen.used.spectra]
    if wanted is None or not used:
        return
    inv_freq, amplitude = used[0]
    if inv_freq.shape != wanted[0].shape or not _near(inv_freq, wanted[0]) or abs(amplitude - wanted[1]) > 1e-6:
        stack = " + ".join(f"{item.name}({item.options()})" for item in seen.stack)
        yield error(
            f"{next(iter(seen.used.rope.values()), {})!r:.200} in rope_parameters, for transformers",
            f"{stack:.200} in the record, for pospatch",
            "delete the 'pospatch' entry where rope_parameters are right, else correct rope_parameters",
        )


def _near(one: Tensor, other: Tensor) -> bool:
    return bool(((one - other).abs() <= 1e-5 * other.abs() + 1e-30).all())


@check
def patch_tensors(seen: Evidence) -> Iterator[Finding]:
    """Tensors of a patch that are not there, or that no record explains."""
    named = seen.record.get("tensors") if isinstance(seen.record, dict) else None
    stray = [name for name in (*seen.weights.places, *(seen.weights.own or ())) if is_patch_tensor(name)]
    if stray and seen.record is None:
        yield error(
            "no patch record: transformers reads the base's positions",
            f"the patch that {stray[0]} and {len(stray) - 1} more tensors belong to",
            "put back the config.json that was saved with them",
        )
    if not isinstance(named, list) or not named or (seen.files.names() is None and seen.weights.own is None):
        return
    missing = sorted({str(name) for name in named} - set(seen.weights.own or ()))
    if missing:
        yield error(
            f"{seen.weights.file} without {missing[0]}" if seen.weights.own else f"no {seen.weights.file}",
            f"{len(named)} tensors of the patch",
            f"the checkpoint is incomplete: copy {seen.weights.file} along, or {SAVE}",
        )


@check
def adapter_base(seen: Evidence) -> Iterator[Finding]:
    """An adapter that carries no record, on a base whose positions were changed."""
    if seen.kind != "peft adapter" or seen.record is not None or seen.adapter is None:
        return
    name, base = seen.adapter.get("base_model_name_or_path"), seen.base
    if base is None:
        yield note(
            f"the base {name!r:.100} is not at hand", "its config, to see whether its positions were changed",
            "give base=FOLDER (--base FOLDER)",
        )  # fmt: skip
        return
    changed = _changed(base)
    if changed:
        yield warning(
            f"an adapter that says nothing of positions, trained on {base.source}, which has {changed}",
            "a record of them in adapter_config.json: on any other base it is misread",
            "load it on that base only; save it from a model that pospatch patched, and it carries the patch",
        )
    limit, length = tokenizer_length(seen), base.used.length
    if limit and length and limit > length and not changed:
        yield warning(
            f"the adapter's tokenizer reads {limit} tokens and its base {length}",
            "positions that reach so far, or no such tokenizer",
            "it may have been trained on extended positions that nothing records; ask who made it, then apply the same method",
        )


def _changed(base: Evidence) -> str | None:
    """What was changed in a base's positions, in a few words."""
    if base.record is not None:
        return f"a patch of pospatch ({' + '.join(method.name for method in base.stack) or 'unreadable'})"
    scaled = [item for item in base.used.rope.values() if item.get("rope_type") not in PLAIN]
    return f"{scaled[0].get('rope_type')} with factor {scaled[0].get('factor')}" if scaled else None


@check
def adapter_record(seen: Evidence) -> Iterator[Finding]:
    """An adapter with a record: how it is loaded, and whether the base is the one it was made on."""
    if seen.kind == "model" or not seen.stack:
        return
    call = "load_peft" if seen.kind == "peft adapter" else "load_adapter"
    stack = " + ".join(method.name for method in seen.stack)
    yield note(
        f"the patch {stack} is recorded",
        f"pospatch.{call}",
        f"pospatch.{call}(base, path) applies it and refuses others",
    )
    if seen.base is None or seen.base.used.config is None or not isinstance(seen.record, dict):
        return
    model: Any = SimpleNamespace(config=bare(seen.base))
    try:
        _base.check(model, seen.record.get("base"), seen.source)
    except CheckpointError as why:
        yield error(str(why), "the base that it was made on", "give the right base; its name stands in the record")
