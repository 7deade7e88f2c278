"""What is asked of every family, and the table of the answers.

Each variant (one class of one family) is built tiny, and native checks say what the family itself can do. Then each
method is applied, and where pospatch says that it fits, everything must hold: the output changes, cached decoding gives what
one pass gives, left padding changes nothing, `remove` brings every bit back, and a saved model loads as it was. Where
pospatch says that it does not fit, applying must raise, saying why, and leave every bit as it was.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pospatch
from pospatch.engine import _probe
from pospatch.engine._parts import choose
from pospatch.engine._seams import given_to, positions_of
from pospatch.engine._sites import find
from pospatch.engine.embedding import NAME
from pospatch.errors import BadOption, PospatchError
from pospatch.hosts import host_of, refusal_of
from tests import families
from tests.families import Variant
from tests.family_exceptions import LARGE

METHODS: dict[str, dict[str, Any]] = {  # one of each kind and of each way of acting
    "nope": {},
    "sinusoidal": {},
    "rope": {"rope_theta": 5000.0},
    "xpos": {},
    "yarn": {"factor": 4.0},
    "dynamic_ntk": {"factor": 4.0},
    "alibi": {},
    "t5_bias": {},
    "self_extend": {"group_size": 2, "window": 4},
    "logn": {},
    "rope_2d": {},
}
LENGTH = 12
RESULTS = Path(__file__).parent / "support.json"


@dataclass
class Result:
    """The answers of one variant.

    Args:
        status: "passes" where some method that removes or changes the native positions held in every check, else "refused".
        wiring: short name of the row; "detected" where there is none.
        methods: for each method "holds" or the reason why it does not fit.
        native: what the family itself does: "cache" where cached decoding equals one pass, "padding" where left padding changes
            nothing, "files" where a saved model loads as it was.
        reason: why a variant is refused as a whole.
    """

    variant: str
    status: str
    wiring: str = ""
    methods: dict[str, str] = field(default_factory=dict)
    native: list[str] = field(default_factory=list)
    reason: str = ""


class Broken(AssertionError):
    """Something that pospatch said would hold does not."""


def examine(variant: Variant, methods: dict[str, dict[str, Any]] | None = None) -> Result:
    """Ask everything of one variant; raises Broken where a promise is not kept."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = families.build(variant)
        except Exception as error:  # noqa: BLE001  whatever a family raises is its reason
            return Result(str(variant), "not built", reason=_short(error))
        return _Examination(variant, model).run(METHODS if methods is None else methods)


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".replace("\n", " ")[:240]


class _Examination:
    def __init__(self, variant: Variant, model: Any) -> None:
        self.variant, self.model = variant, model
        family = model.config.model_type
        try:
            self.root, _ = choose(model, None)
            family = self.root.config.model_type
        except PospatchError:
            self.root = model
        host = host_of(family)
        self.result = Result(str(variant), "refused", wiring=host.wiring if host is not None else "detected")
        if refusal := refusal_of(family):
            self.result.wiring, self.result.reason = "refused", refusal.reason

    def run(self, methods: dict[str, dict[str, Any]]) -> Result:
        try:
            self.inputs = _probe.inputs(self.root)
            self.native = self.outputs()
        except Exception as error:  # noqa: BLE001  a family that does not run on small inputs
            self.result.reason = self.result.reason or f"does not run on a small input: {_short(error)}"
            self.refuses("alibi", {})
            return self.result
        self.state = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.text = _probe.reads_text(self.root)
        self.steady()
        for name, options in methods.items():
            self.result.methods[name] = self.one(name, options)
        held = [name for name, said in self.result.methods.items() if said.startswith("holds") and name != "logn"]
        if held:
            self.result.status = "passes"
        elif not self.result.reason:
            self.result.reason = next(iter(self.result.methods.values()), "no method was asked")
        return self.result

    def outputs(self, root: Any = None) -> dict[str, Tensor]:
        with _probe.quiet(self.root):
            found = _probe.forward(self.root, self.inputs)
        if not found:
            raise NotImplementedError("no hidden states come back")
        return found

    def steady(self) -> None:
        """What the family does by itself: only that can be asked of it under a patch."""
        again = self.outputs()
        if any(not torch.equal(self.native[name], again[name]) for name in again):
            raise Broken(f"{self.variant} is not the same twice")
        if self.text and self.same(self.cached):
            self.result.native.append("cache")
        if self.text and self.same(self.padded):
            self.result.native.append("padding")
        if self.same(self.saved):
            self.result.native.append("files")

    def same(self, check: Any) -> bool:
        try:
            return bool(check())
        except Exception:  # noqa: BLE001  a family that cannot do it by itself is not asked again
            return False

    def refuses(self, name: str, options: dict[str, Any]) -> str:
        """Applying raises one of our errors; the reason."""
        try:
            pospatch.apply(self.model, name, **options)
        except PospatchError as error:
            return _short(error)
        raise Broken(f"{self.variant}: {name} was to be refused and was applied")

    def one(self, name: str, options: dict[str, Any]) -> str:
        try:
            pospatch.apply(self.model, name, **options)
        except PospatchError as error:
            self.unchanged(f"{name} refused")
            return _short(error)
        try:
            self.differs(name)
        except BadOption as error:  # a table of the trained length, and this input is longer: said when it is read
            pospatch.remove(self.model)
            self.unchanged(f"{name} refused")
            return _short(error)
        if "cache" in self.result.native and pospatch.registry.method_class(name).exact_decode and not self.cached():
            raise Broken(f"{self.variant}: {name}: cached decoding is not what one pass gives")
        padded = "padding" not in self.result.native or self.padded()
        if not padded and not self.counts_pads(name):
            raise Broken(f"{self.variant}: {name}: left padding changes the output")
        if name == "t5_bias" and "files" in self.result.native and not self.saved():
            raise Broken(f"{self.variant}: {name}: a saved model is another one when it is loaded")
        pospatch.remove(self.model)
        self.unchanged(f"{name} removed")
        return (
            "holds" if padded else "holds; counts pads on the left, since this family hands no positions to its layers"
        )

    def counts_pads(self, name: str) -> bool:
        """True for a table of ours before a layer that is handed no positions: there is nothing it could read."""
        layer = next((module for module in self.root.modules() if NAME in module._modules), None)
        if pospatch.registry.method_class(name).slot != "embedding" or layer is None:
            return False
        seen: list[Any] = []

        def look(module: Any, args: Any, kwargs: Any) -> None:
            seen.append(positions_of(given_to(module, args, kwargs)))

        handle = layer.register_forward_pre_hook(look, with_kwargs=True)
        self.outputs()
        handle.remove()
        return seen == [None]

    def saved(self) -> bool:
        """A model that was saved loads with the output it had."""
        before = self.outputs()
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            loaded = pospatch.from_pretrained(folder, auto_class=type(self.model)).eval()
        root, _ = choose(loaded, None)
        with _probe.quiet(root):
            after = _probe.forward(root, self.inputs)
        return all(_close(after[name].float(), before[name].float()) for name in before)

    def differs(self, name: str) -> None:
        now = self.outputs()
        if not all(value.isfinite().all() for value in now.values()):
            raise Broken(f"{self.variant}: {name} gives NaN")
        gap = max(
            ((self.native[k] - now[k]).abs().max().item() for k in now if now[k].shape == self.native[k].shape),
            default=1.0,
        )
        family = self.root.config.model_type
        twins = {("bloom", "alibi"), ("mpt", "alibi")}  # the same mechanism, ours for theirs
        bare = name in ("nope", "t5_bias") and not find(self.root).native()  # nothing to clear; t5_bias starts at zero
        if ((family, name) in twins or bare) != (gap < 1e-5) and name not in ("self_extend", "logn", "dynamic_ntk"):
            raise Broken(f"{self.variant}: {name} changes the output by {gap:.1e}")

    def unchanged(self, when: str) -> None:
        now = self.outputs()
        if any(not torch.equal(now[name], self.native[name]) for name in now):
            raise Broken(f"{self.variant}: {when}, and the output is not the native one to the bit")
        state = self.model.state_dict()
        if list(state) != list(self.state) or any(not torch.equal(state[name], self.state[name]) for name in state):
            raise Broken(f"{self.variant}: {when}, and the state dict is not the native one")

    def ids(self) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        return torch.randint(6, families.VOCABULARY, (1, LENGTH), generator=generator)

    def call(self, ids: Tensor, **keywords: Any) -> Any:
        """One forward; of an encoder-decoder the decoder gets these tokens and the encoder others."""
        base = _probe._base(self.root)
        if self.root.config.is_encoder_decoder and "decoder_input_ids" in _probe._parameters(base):
            keywords = {"decoder_" + k if k == "attention_mask" else k: v for k, v in keywords.items()}
            return base(input_ids=self.ids().flip(1), decoder_input_ids=ids, **keywords)
        return base(input_ids=ids, **keywords)

    def hidden(self, ids: Tensor, **keywords: Any) -> Tensor:
        return _last(self.call(ids, **keywords))

    def cached(self) -> bool:
        """A prefill and single steps give the hidden states of one pass."""
        ids = self.ids()
        with _probe.quiet(self.root):
            whole = self.hidden(ids, use_cache=False)
            output = self.call(ids[:, :7], use_cache=True)
            steps = [_last(output)]
            for at in range(7, LENGTH):
                output = self.call(ids[:, at : at + 1], past_key_values=output.past_key_values, use_cache=True)
                steps.append(_last(output))
        return _close(torch.cat(steps, dim=1), whole)

    def padded(self) -> bool:
        """Pads on the left, masked, with positions that start after them, change nothing."""
        ids, base = self.ids(), _probe._base(self.root)
        mask = torch.cat((torch.zeros(1, 3, dtype=torch.long), torch.ones_like(ids)), dim=1)
        padded = torch.cat((torch.zeros(1, 3, dtype=torch.long), ids), dim=1)
        keywords: dict[str, Any] = {}
        if "position_ids" in _probe._parameters(base):
            keywords["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        with _probe.quiet(self.root):
            whole = self.hidden(ids)
            shifted = self.hidden(padded, attention_mask=mask, **keywords)
        return _close(shifted[:, 3:], whole)


def _last(output: Any) -> Tensor:
    return output.last_hidden_state if hasattr(output, "last_hidden_state") else output.logits


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 2e-3 * b.std().clamp(min=1e-2))


def everyone() -> list[Variant]:
    """All variants that are asked."""
    return [variant for variant in families.variants() if str(variant) not in LARGE]


def save(results: list[Result]) -> None:
    """Write the answers where the support table is made from."""
    plain = [asdict(result) for result in results]
    for item in plain:
        item["methods"] = {name: said for name, said in item["methods"].items() if said.startswith("holds")}
    lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in plain)
    RESULTS.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def saved_results() -> list[Result]:
    """The answers of the last whole run."""
    return [Result(**item) for item in json.loads(RESULTS.read_text(encoding="utf-8"))]


def main(names: list[str]) -> None:
    """Ask every family and write the answers and the table: `python -m tests.matrix`; with names of variants only those are
    asked anew."""
    from tests import support

    everything = everyone()
    if unknown := sorted(set(names) - {str(variant) for variant in everything}):
        raise SystemExit(f"no such variants: {', '.join(unknown)}")
    answers = {result.variant: result for result in saved_results()} if names else {}
    broken = []
    for variant in everything:
        if names and str(variant) not in names:
            continue
        try:
            answers[str(variant)] = examine(variant)
            print(answers[str(variant)].status, variant, flush=True)
        except Exception as error:  # noqa: BLE001  one broken family must not hide the next
            broken.append(f"{variant}: {_short(error)}")
            print("BROKEN", broken[-1], flush=True)
        gc.collect()
    if broken:
        raise SystemExit(f"{len(broken)} variants are broken; nothing was written")
    results = [answers[str(variant)] for variant in everything]
    save(results)
    support.write()
    print(f"{sum(result.status == 'passes' for result in results)} of {len(results)} variants pass")


if __name__ == "__main__":
    main(sys.argv[1:])
