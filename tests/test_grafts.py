"""How a patch takes over in training: fades, a swap at a step, a warm start; lengths that grow; what is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import pospatch
from pospatch import registry
from pospatch.errors import BadOption, PospatchError, UnsupportedHost
from pospatch.methods import _base as kinds
from pospatch.training import graft, tuning
from pospatch.training.arguments import parse
from pospatch.training.fade import Fade
from pospatch.training.lengths import Lengths
from pospatch.training.options import TuneArguments
from pospatch.training.run import Run, run
from tests import tiny
from tests.test_training import _config, _losses, _run, _weights

_TURNED = (kinds.Rotary, kinds.Bias, kinds.Contextual, kinds.QueryScale, kinds.Nothing)
TOKENS = tiny.ids(batch=2, length=24)


def _fades() -> list[tuple[str, str]]:
    return [(host, name) for host in ("llama", "gpt2", "bert") for name in registry.names()]


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    return model(input_ids=TOKENS).logits


def _fade(model: Any) -> Fade | None:
    """A fade, or None where it is refused as it should be."""
    if isinstance(pospatch.api.patch_of(model).stack[0], _TURNED):
        try:
            return Fade(model)
        except UnsupportedHost as error:
            if "at position 0" in str(error):  # it changes vectors that stand at the start too
                return None
            raise
    if not getattr(pospatch.api.patch_of(model).stack[0], "training_only", False):
        with pytest.raises(UnsupportedHost, match="use graft: swap"):
            Fade(model)
    return None


# fades --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "name"), _fades())
def test_a_fade_goes_from_the_old_model_to_the_new_one(host: str, name: str) -> None:
    model = tiny.build(host)
    old = _logits(model)
    try:
        pospatch.apply(model, name, **tiny.options(name, model))
    except PospatchError:
        return  # whether a method fits is tested elsewhere
    new = _logits(model)
    fade = _fade(model)
    if fade is None:
        return
    torch.testing.assert_close(_logits(model), new, rtol=1e-4, atol=1e-4)
    fade.share = 0.0
    torch.testing.assert_close(_logits(model), old, rtol=1e-4, atol=1e-4)
    fade.share = 0.5
    if (new - old).abs().max() > 1e-3:
        between = _logits(model)
        assert min((between - old).abs().max(), (between - new).abs().max()) > 1e-3
    fade.remove()
    assert torch.equal(_logits(model), new)


@pytest.mark.parametrize(
    ("name", "options"), [("temperature", {"floor_scale": 2}), ("logn", {"original_max_position_embeddings": 4})]
)
def test_a_factor_of_queries_fades_too(name: str, options: dict[str, Any]) -> None:
    """With options under which it acts on so few tokens."""
    model = tiny.build("llama")
    old = _logits(model)
    new = _logits(pospatch.apply(model, name, **options))
    fade = Fade(model, share=0.0)
    assert (new - old).abs().max() > 1e-1
    torch.testing.assert_close(_logits(model), old)
    fade.remove()
    assert torch.equal(_logits(model), new)


def test_a_fade_is_trained_through(tmp_path: Path) -> None:
    model = tiny.build("gpt2").train()
    pospatch.apply(model, "kerple_log")
    fade = Fade(model, share=0.25)
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in tuning.own_tensors(model).values())
    fade.remove()
    with pytest.raises(UnsupportedHost, match="the model carries none"):
        Fade(tiny.build("gpt2"))


def test_a_run_fades_and_ends_as_the_patched_model(tmp_path: Path) -> None:
    faded = _run(tmp_path / "faded", patch="nope", graft="fade", graft_steps=4)
    swapped = _run(tmp_path / "swapped", patch="nope")
    before = [json.loads((out / "results.json").read_text())["before"]["base"]["loss"] for out in (faded, swapped)]
    assert before[0] == before[1]  # evaluations measure the patched model at all times
    assert _losses(faded)[0] != _losses(swapped)[0]
    model = pospatch.from_pretrained(AutoModelForCausalLM, faded / "model")
    assert pospatch.inspect(model).method == "nope"


# at a step ----------------------------------------------------------------------------------------------------------------


def test_a_patch_at_a_step_resumes_on_both_sides_of_it(tmp_path: Path) -> None:
    changes = {"patch": "nope", "graft": "at_step", "graft_steps": 4, "save_steps": 2, "save_total_limit": 5}
    whole = _run(tmp_path / "whole", **changes)
    unpatched = _run(tmp_path / "unpatched", patch=None)
    assert _losses(whole)[:4] == _losses(unpatched)[:4]
    assert _losses(whole)[4] != _losses(unpatched)[4]
    for step in (2, 4):
        half = tmp_path / f"half{step}" / "out"
        shutil.copytree(whole, half)
        for later in (path for path in half.glob("checkpoint-*") if int(path.name.split("-")[1]) > step):
            shutil.rmtree(later)
        _run(tmp_path / f"half{step}", **changes)
        assert _losses(half) == _losses(whole)
        ours, wanted = _weights(half), _weights(whole)
        assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


_DROPE = {
    "patch": ["nope", {"method": "qk_norm", "over": "all"}],
    "graft": "at_step",
    "graft_steps": 3,
    "save_steps": 1,
}
_BRINGING = {
    "DroPE with QK norm": {**_DROPE, "weight_decay": 0.1},
    "DroPE with QK norm, lora": {**_DROPE, "tuning": "lora"},
    "a bias, with decay": {**_DROPE, "patch": "t5_bias", "weight_decay": 0.5},
    "a longer table of a GPT-2": {
        **_DROPE,
        "model": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48, "vocab_size": 259},
        "patch": {"method": "learned", "length": 96},
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", _BRINGING.values(), ids=_BRINGING.keys())
def test_tensors_that_a_patch_brings_at_a_step_are_trained_from_there_and_resume(
    tmp_path: Path, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Before the step the run is one without the patch; a checkpoint on either side of it ends in the same model."""
    changes = {**changes, "save_total_limit": 9}
    whole = _run(tmp_path / "whole", **changes)
    unpatched = _run(tmp_path / "unpatched", **{**changes, "patch": None, "graft": "swap", "graft_steps": 0})
    assert _losses(whole)[:3] == _losses(unpatched)[:3]
    assert _losses(whole)[3:] != _losses(unpatched)[3:]
    wanted = _weights(whole)
    first, last = (load_file(whole / f"checkpoint-{step}" / "trained_patch.safetensors") for step in (4, 6))
    assert all((last[name] - value).abs().max() > 1e-3 for name, value in first.items())
    assert not (whole / "checkpoint-3" / "trained_patch.safetensors").exists()
    for step in (3, 4, 6):
        half = tmp_path / f"half{step}" / "out"
        shutil.copytree(whole, half)
        for later in (path for path in half.glob("checkpoint-*") if int(path.name.split("-")[1]) > step):
            shutil.rmtree(later)
        caplog.clear()
        _run(tmp_path / f"half{step}", **changes)
        assert "unexpected keys" not in caplog.text
        assert _losses(half) == _losses(whole)
        ours = _weights(half)
        assert ours.keys() == wanted.keys()
        assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("patch", [_DROPE["patch"], "t5_bias"], ids=["qk_norm", "t5_bias"])
def test_tensors_that_come_at_a_step_decay_as_those_that_stood_from_the_start(
    tmp_path: Path, patch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, dict[str, float]] = {}
    own = Run._save

    def save(self: Run) -> None:
        decay = {id(p): group["weight_decay"] for group in self.trainer.optimizer.param_groups for p in group["params"]}
        found[self.folder.parent.name] = {
            name: decay[id(value)] for name, value in tuning.own_tensors(self.model).items()
        }
        own(self)

    monkeypatch.setattr(Run, "_save", save)
    common = {"patch": patch, "weight_decay": 0.1, "max_steps": 2}
    _run(tmp_path / "late", **common, graft="at_step", graft_steps=1)
    _run(tmp_path / "start", **common)
    assert found["late"] == found["start"] != {}


def test_gains_at_a_step_are_refused_where_processes_would_not_share_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pospatch.training import processes

    monkeypatch.setattr(processes, "check", lambda *args: "ddp")
    with pytest.raises(BadOption, match=r"under ddp: the patch brings tensors of its own \(.*; use graft: swap"):
        _run(tmp_path, **_DROPE)


@pytest.mark.parametrize(
    "changes", [{"patch": "nope", "graft": "at_step", "graft_steps": 4}, {}], ids=["at_step", "swap"]
)
def test_a_finished_run_is_saved_again_as_it_was(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Its last checkpoint stands at its last step: nothing is trained, and the patch is applied all the same."""
    out = _run(tmp_path, **changes)
    losses, weights, first = _losses(out), _weights(out), json.loads((out / "results.json").read_text())
    shutil.rmtree(out / "model")
    again = json.loads((_run(tmp_path, **changes) / "results.json").read_text())
    assert _losses(out) == losses
    assert again["steps"] == first["steps"] == 6
    assert again["after"] == first["after"]
    found = _weights(out)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    model = pospatch.from_pretrained(AutoModelForCausalLM, out / "model")
    assert pospatch.inspect(model).method == (changes.get("patch") or "yarn")


def test_a_patch_at_a_step_is_probed_when_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pospatch.training import probe

    seen: list[bool] = []
    monkeypatch.setattr(
        probe, "check_documents", lambda model, length: seen.append(pospatch.api.patch_of(model) is not None)
    )
    _run(tmp_path, patch="nope", graft="at_step", graft_steps=2, documents="packed", max_steps=3)
    assert seen == [False, True]


def test_grafts_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="needs a patch"):
        graft.schedule(TuneArguments(graft="fade", graft_steps=2), tiny.build("llama"), [], print)
    later = {"patch": {"method": "dynamic_ntk", "factor": 2.0}, "graft": "at_step", "graft_steps": 2}
    with pytest.raises(UnsupportedHost, match="dynamic_ntk cannot be trained under packing"):
        _run(tmp_path / "packed", documents="packed", **later)
    with pytest.raises(BadOption, match="ends after 6 steps"):
        _run(tmp_path, patch="nope", graft="at_step", graft_steps=6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"graft": "fade"}, "graft_steps is the number"),
        ({"graft_steps": 3}, "graft_steps is the number"),
        ({"length_warmup": [24]}, "go together"),
        ({"length_warmup": [20], "length_warmup_steps": 2}, "20 does not divide sequence_length 48"),
        ({"length_warmup": [24], "length_warmup_steps": 2, "documents": "packed"}, "packed documents would be cut"),
        ({"length_warmup": [24], "length_warmup_steps": 2, "documents": "padded"}, "padded documents would be cut"),
        ({"warm_start": True, "tuning": "lora"}, "does not hold them"),
    ],
)
def test_schedules_that_make_no_sense(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadOption, match=message):
        parse(["--config", str(_config(tmp_path, **changes))])


# warm start ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["gpt2", "opt", "bert"])
@torch.no_grad()
def test_a_warm_start_keeps_the_mean_of_a_dropped_table(host: str) -> None:
    """The same as a table whose rows are all their mean; of a tied head all logits move alike."""
    even, dropped, cold = (tiny.build(host) for _ in range(3))
    for model in (dropped, cold):
        pospatch.apply(model, "t5_bias")
        for value in tuning.own_tensors(model).values():
            value.zero_()
    graft.warm_start(dropped)
    table = pospatch.api.patch_of(dropped).found.tables[0]
    rows = even.get_submodule(table.path).weight
    rows[table.offset :] = rows[table.offset :].mean(dim=0)
    wanted, found, without = (_logits(model).log_softmax(-1) for model in (even, dropped, cold))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (without - wanted).abs().max() > 1e-2


def test_warm_starts_that_cannot_be() -> None:
    with pytest.raises(UnsupportedHost, match="drops no table"):
        graft.warm_start(pospatch.apply(tiny.build("llama"), "alibi"))
    with pytest.raises(UnsupportedHost, match="2 tables"):
        graft.warm_start(pospatch.apply(tiny.build("bart"), "t5_bias"))


# lengths and what is trained ------------------------------------------------------------------------------------------------


def test_sequences_are_cut_into_pieces_of_the_same_tokens() -> None:
    batch = {"input_ids": torch.arange(24).view(2, 12), "labels": torch.arange(24).view(2, 12)}
    pieces = Lengths().cut(batch, 4)
    assert pieces["input_ids"].tolist()[3] == [12, 13, 14, 15]
    assert pieces["labels"].shape == (6, 4)


def test_lengths_grow_and_resume_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pospatch.training import loss

    seen: list[tuple[int, ...]] = []
    own = loss.SlicedLoss.__call__

    def watched(self: Any, input_ids: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            seen.append(tuple(input_ids.shape))
        return own(self, input_ids=input_ids, labels=labels, **kwargs)

    monkeypatch.setattr(loss.SlicedLoss, "__call__", watched)
    changes = {"length_warmup": [12, 24], "length_warmup_steps": 2, "gradient_accumulation_steps": 1}
    whole = _run(tmp_path / "whole", **changes)
    assert seen == [(8, 12)] * 2 + [(4, 24)] * 2 + [(2, 48)] * 2
    shutil.copytree(whole, tmp_path / "half" / "out")
    shutil.rmtree(tmp_path / "half" / "out" / "checkpoint-6")
    assert _losses(_run(tmp_path / "half", **changes)) == _losses(whole)


def test_lora_with_embeddings_and_norms_trains_and_resumes(tmp_path: Path) -> None:
    changes = {"tuning": "lora_embed_norm", "patch": "t5_bias"}
    whole = _run(tmp_path / "whole", **changes)
    shutil.copytree(whole, tmp_path / "half" / "out")
    shutil.rmtree(tmp_path / "half" / "out" / "checkpoint-6")
    half = _run(tmp_path / "half", **changes)
    assert _losses(half) == _losses(whole)
    ours, wanted = _weights(half), _weights(whole)
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)
    plain = _weights(_run(tmp_path / "plain", patch="t5_bias", max_steps=1, learning_rate=0.0))
    moved = {name for name in wanted if not torch.equal(wanted[name], plain[name])}
    assert {"model.embed_tokens.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight"} <= moved


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_and_norms_stay_tied_and_merge(tied: bool) -> None:
    model = tiny.spread(tiny.llama(tie_word_embeddings=tied))
    pospatch.apply(model, "t5_bias")
    tuned = tuning.prepare(model, TuneArguments(tuning="lora_embed_norm", lora_r=2))
    assert any("norm" in name for name, value in tuned.named_parameters() if value.requires_grad)
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            if value.requires_grad:
                value += 0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
    before = _logits(tuned.eval())
    merged = tuned.merge_and_unload()
    torch.testing.assert_close(_logits(merged), before, rtol=1e-3, atol=1e-3)
    assert (merged.get_input_embeddings().weight is merged.get_output_embeddings().weight) == tied


def test_a_tie_that_peft_would_cut_is_refused() -> None:
    with pytest.raises(BadOption, match=r"transformer\.wte is tied to the head"):
        tuning.prepare(tiny.build("gpt2"), TuneArguments(tuning="lora_embed_norm"))


@pytest.mark.parametrize("drawn", ["pose", "randomized"])
def test_drawn_positions_are_trained_with_and_saved_as_native(tmp_path: Path, drawn: str) -> None:
    patch = [{"method": "yarn", "factor": 2.0}, {"method": drawn}]
    out = _run(tmp_path, patch=patch, sequence_length=24, max_steps=4)
    plain = AutoModelForCausalLM.from_pretrained(out / "model")
    assert plain.config.rope_parameters["rope_type"] == "yarn"
    other = _run(tmp_path / "plain", patch=patch[0], sequence_length=24, max_steps=4)
    assert _losses(out) != _losses(other)


def test_a_plan_estimates_memory_and_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(parse(["--config", str(_config(tmp_path, max_steps=2))]))
    said = capsys.readouterr().out
    assert "memory: about 0.0" in said
    assert "time: about 0.0 minutes for 2 steps" in said


def test_a_plan_that_needs_more_memory_than_there_is_says_so(tmp_path: Path) -> None:
    from pospatch.training import plan

    arguments = parse(["--config", str(_config(tmp_path, sequence_length=10**9, train_tokens=None))])
    assert "MORE THAN IS FREE" in plan.memory(arguments, tiny.build("llama"))
    with pytest.raises(BadOption, match=r"has .* GiB in all"):
        plan.check_memory(arguments, tiny.build("llama"), shared_out=False)


def test_what_deepspeed_shards_is_gathered_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pospatch.training.run import Run
    from pospatch.training.trainer import PatchTrainer

    own, engine = Run._save, object()

    def save(self: Any) -> None:
        """Each process holds empty weights; only the engine has them whole."""
        whole = {name: value + 1 for name, value in self.model.state_dict().items()}
        self.trainer.is_deepspeed_enabled, self.trainer.deepspeed = True, engine
        self.trainer.accelerator.get_state_dict = lambda asked: whole if asked is engine else None
        own(self)

    plain = _weights(_run(tmp_path / "plain", max_steps=1))
    monkeypatch.setattr(Run, "_save", save)
    gathered = _weights(_run(tmp_path / "gathered", max_steps=1))
    assert all(torch.equal(gathered[name], value + 1) for name, value in plain.items())
    monkeypatch.setattr(PatchTrainer, "sharded", property(lambda self: True))
    with pytest.raises(BadOption, match="shards the weights"):
        _run(tmp_path / "lora", tuning="lora")
