"""Fine-tuning inside one process: arguments, data, the sliced loss, what is trained, exact resume, what is saved."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, ByT5Tokenizer

import pospatch
from pospatch.errors import BadOption, BadOptionType, CheckpointError, UnknownName, UnsupportedHost
from pospatch.training import disk, loss, options, plan, tuning
from pospatch.training.arguments import parse
from pospatch.training.callbacks import MetricsFile
from pospatch.training.data import load
from pospatch.training.options import DataArguments, TuneArguments
from pospatch.training.run import run
from tests import tiny

_LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "vocab_size": 259,
}


def _config(folder: Path, **changes: Any) -> Path:
    """A recipe that runs in a second or two."""
    content = {
        "model": _LLAMA,
        "tokenizer": "bytes",
        "patch": {"method": "yarn", "factor": 2.0},
        "text": "topics",
        "train_tokens": 4096,
        "sequence_length": 48,
        "eval_last": 16,
        "tuning": "full",
        "learning_rate": 1e-2,
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_steps": 3,
        "output_dir": str(folder / "out"),
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _run(folder: Path, **changes: Any) -> Path:
    run(parse(["--config", str(_config(folder, **changes))]))
    return folder / "out"


def _losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def _weights(out: Path) -> dict[str, torch.Tensor]:
    return pospatch.from_pretrained(AutoModelForCausalLM, out / "model").state_dict()


# arguments --------------------------------------------------------------------------------------------------------------


def test_a_flag_wins_over_the_file(tmp_path: Path) -> None:
    path = str(_config(tmp_path))
    assert parse(["--config", path]).training.max_steps == 6
    arguments = parse(["--config", path, "--max_steps", "9", "--patch", "{method: ntk, factor: 4}", "--tuning=lora"])
    assert arguments.training.max_steps == 9
    assert arguments.model.stack == [("ntk", {"factor": 4})]
    assert arguments.tune.tuning == "lora"


def test_a_patch_may_be_a_name_a_list_or_nothing(tmp_path: Path) -> None:
    def stack(patch: Any) -> Any:
        return parse(["--config", str(_config(tmp_path, patch=patch))]).model.stack

    assert stack("rope") == [("rope", {})]
    assert stack([{"method": "rope", "rope_theta": 5e5}, "logn"]) == [("rope", {"rope_theta": 5e5}), ("logn", {})]
    assert stack(None) == []
    with pytest.raises(BadOptionType, match="method: NAME"):
        stack({"factor": 2})


@pytest.mark.parametrize(
    ("argv", "error", "message"),
    [
        (["--sequence_lenght", "8"], UnknownName, "Did you mean 'sequence_length'"),
        (["--max_steps", "many"], BadOptionType, "invalid int value: 'many'"),
        (["--tuning", "most"], BadOptionType, "invalid choice"),
        (["--max_steps", "3", "4"], BadOptionType, "'4' follows a flag"),
        (["--held_out", "1.5"], BadOption, "held_out"),
        (["--resume_from_checkpoint", "x"], BadOption, "resume: PATH"),
        (["--save_only_model", "true"], BadOption, "exact resume"),
        (["--loss_slice", "-1"], BadOption, "loss_slice"),
    ],
)
def test_bad_flags(tmp_path: Path, argv: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse(["--config", str(_config(tmp_path)), *argv])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tunning": "lora"}, UnknownName, "unknown key 'tunning'. Did you mean 'tuning'"),
        ({"max_steps": "many"}, BadOptionType, "max_steps.*invalid int value: 'many'"),
        ({"learning_rate": [1, 2]}, BadOptionType, "invalid float value"),
        ({"model": None}, BadOption, "model is missing"),
        ({"output_dir": None}, BadOption, "output_dir is missing"),
    ],
)
def test_bad_files(tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse(["--config", str(_config(tmp_path, **changes))])


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="no such file"):
        parse(["--config", str(tmp_path / "absent.yaml")])
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(BadOptionType, match="mapping"):
        parse(["--config", str(tmp_path / "list.yaml")])
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(BadOption, match="not YAML"):
        parse(["--config", str(tmp_path / "broken.yaml")])


def test_the_printed_configuration_reads_back_the_same(tmp_path: Path) -> None:
    first = parse(["--config", str(_config(tmp_path, lora_target=["q_proj", "v_proj"])), "--weight_decay", "0.1"])
    (tmp_path / "again.yaml").write_text(first.to_yaml())
    second = parse(["--config", str(tmp_path / "again.yaml")])
    assert second.config == first.config
    assert second.training.weight_decay == 0.1
    assert second.tune.lora_target == ["q_proj", "v_proj"]


# data -------------------------------------------------------------------------------------------------------------------


def test_packing_keeps_the_text_and_holds_its_end_back(tmp_path: Path) -> None:
    text = "".join(f"{number:04d} " for number in range(2000))
    (tmp_path / "text.txt").write_text(text)
    arguments = DataArguments(text=str(tmp_path / "text.txt"), sequence_length=70, held_out=0.2, eval_last=10)
    data = load(arguments, ByT5Tokenizer(extra_ids=0), base_length=40, target_length=90)
    read = "".join(chr(token - 3) for row in data.train["input_ids"] for token in row.tolist())
    assert read == text[: 8000 // 70 * 70]
    base, target = data.windows["base"][0], data.windows["target"][0]
    assert len(base["input_ids"]) == 40
    assert len(target["input_ids"]) == 90
    assert torch.equal(base["input_ids"][-40:], target["input_ids"][-40:])
    held_out = "".join(chr(token - 3) for token in target["input_ids"].tolist())
    assert held_out == text[8000:8090]
    assert (target["labels"] != -100).sum() == 10
    assert torch.equal(base["labels"][-10:], target["labels"][-10:])


def test_a_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a few words " * 20)
    arguments = DataArguments(text=str(tmp_path / "text.txt"), sequence_length=64, eval_last=4)
    with pytest.raises(BadOption, match="24 tokens"):
        load(arguments, ByT5Tokenizer(extra_ids=0), base_length=16, target_length=32)
    arguments.sequence_length = 400
    with pytest.raises(BadOption, match="400 are wanted"):
        load(arguments, ByT5Tokenizer(extra_ids=0), base_length=8, target_length=16)


# loss -------------------------------------------------------------------------------------------------------------------


def _gradients(model: Any, **inputs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    found = model(**inputs).loss
    found.backward()
    return found.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _close(got: torch.Tensor, wanted: torch.Tensor, limit: float = 2e-5) -> None:
    assert (got - wanted).abs().max() <= limit * (1 + wanted.abs().max())


@pytest.mark.parametrize("host", tiny.CAUSAL)
@pytest.mark.parametrize("size", [1, 7, 64])
def test_the_sliced_loss_is_the_models_own(host: str, size: int) -> None:
    model, ids = tiny.build(host).train(), tiny.ids(batch=2, length=20)
    labels = ids.clone()
    labels[0, :9] = -100
    wanted, own = _gradients(model, input_ids=ids, labels=labels)
    sliced = loss.install(model, size)
    assert sliced is not None
    got, gradients = _gradients(model, input_ids=ids, labels=labels)
    _close(got, wanted)
    assert gradients.keys() == own.keys()
    for name, gradient in gradients.items():
        _close(gradient, own[name])
    counted, _ = _gradients(model, input_ids=ids, labels=labels, num_items_in_batch=torch.tensor(100))
    _close(counted, wanted * (11 + 19) / 100)
    sliced.remove()
    assert model(input_ids=ids, labels=labels).logits is not None


@pytest.mark.parametrize("method", ["yarn", "alibi", "t5_bias", "self_extend"])
def test_the_sliced_loss_of_a_patched_model(method: str) -> None:
    model, ids = tiny.build("llama"), tiny.ids(batch=2, length=20)
    pospatch.apply(model, method, **tiny.options(method, model))
    model.train()
    wanted, own = _gradients(model, input_ids=ids, labels=ids)
    loss.install(model, 8)
    model.activation_checkpointing_enable({"use_reentrant": False})
    got, gradients = _gradients(model, input_ids=ids, labels=ids)
    _close(got, wanted)
    assert gradients.keys() == own.keys()
    for name, gradient in gradients.items():
        _close(gradient, own[name])


def test_no_more_logits_than_a_slice_exist() -> None:
    model, ids = tiny.build("llama").train(), tiny.ids(length=20)
    loss.install(model, 6)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    model(input_ids=ids, labels=ids).loss.backward()
    assert max(seen) == 6


def test_a_model_that_is_not_causal_is_refused() -> None:
    import transformers

    config = tiny.build("bert").config
    for model in (transformers.BertLMHeadModel(config), tiny.build("bart")):
        with pytest.raises(UnsupportedHost, match="predicts the next token"):
            loss.install(model, 8)
        assert "forward" not in vars(model)


# what is trained ----------------------------------------------------------------------------------------------------------


def test_lora_trains_the_patch_too() -> None:
    model = tiny.build("gpt2")
    pospatch.apply(model, ["learned", "t5_bias"])
    tuned = tuning.prepare(model, TuneArguments(tuning="lora", lora_r=2))
    trained = {name for name, value in tuned.named_parameters() if value.requires_grad}
    own = {name for name in trained if "lora_" not in name}
    assert own == {
        "base_model.model.transformer.wpe.weight",
        *(f"base_model.model.transformer.h.{layer}.attn.pospatch.score__table" for layer in range(2)),
    }
    assert len(trained) > len(own)


def test_patch_trains_nothing_else_and_refuses_a_patch_without_tensors() -> None:
    model = pospatch.apply(tiny.build("llama"), "t5_bias")
    tuning.prepare(model, TuneArguments(tuning="patch"))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(tuning.own_tensors(model))
    yarn = pospatch.apply(tiny.build("llama"), "yarn", factor=2.0)
    with pytest.raises(BadOption, match="none; use lora or full"):
        tuning.prepare(yarn, TuneArguments(tuning="patch"))


def test_a_lora_target_that_is_not_there() -> None:
    with pytest.raises(BadOption, match="nowhere"):
        tuning.prepare(tiny.build("llama"), TuneArguments(lora_target=["nowhere"]))


def test_tensors_of_another_patch_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"other": torch.zeros(1)}, tmp_path / "file")
    with pytest.raises(CheckpointError, match="other"):
        tuning.load_tensors(pospatch.apply(tiny.build("llama"), "t5_bias"), tmp_path / "file")


# runs ---------------------------------------------------------------------------------------------------------------------


_RUNS = {
    "full, native": {"patch": {"method": "yarn", "factor": 2.0}},
    "full, with tensors": {"patch": "t5_bias"},
    "lora": {"tuning": "lora", "lora_dropout": 0.1, "patch": {"method": "yarn", "factor": 2.0}},
    "lora, with tensors": {"tuning": "lora", "patch": "t5_bias", "activation_checkpointing": True},
}


@pytest.mark.parametrize("changes", _RUNS.values(), ids=_RUNS.keys())
def test_six_steps_are_three_and_three_more(tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = _run(tmp_path / "whole", **changes)
    shutil.copytree(whole, tmp_path / "half" / "out")
    for made in ("checkpoint-6", "model", "adapter"):
        shutil.rmtree(tmp_path / "half" / "out" / made, ignore_errors=True)
    (tmp_path / "half" / "out" / "results.json").unlink()
    half = _run(tmp_path / "half", **changes)
    assert _losses(half) == _losses(whole)
    assert len(_losses(half)) == 6
    ours, wanted = _weights(half), _weights(whole)
    assert ours.keys() == wanted.keys()
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)
    results = [json.loads((out / "results.json").read_text()) for out in (whole, half)]
    assert results[0]["before"] == results[1]["before"]
    assert results[0]["after"] == results[1]["after"]
    assert results[0]["after"]["base"]["loss"] < results[0]["before"]["base"]["loss"]


def test_resume_refuses_another_run(tmp_path: Path) -> None:
    _run(tmp_path, max_steps=3)
    with pytest.raises(BadOption, match=r"learning_rate: 0.01 -> 0.02"):
        _run(tmp_path, max_steps=3, learning_rate=2e-2)
    with pytest.raises(BadOption, match="never"):
        _run(tmp_path, max_steps=3, resume="never")
    with pytest.raises(BadOption, match="auto, never or a checkpoint folder"):
        _run(tmp_path, max_steps=3, resume="yes")


@pytest.mark.parametrize("cut", ["trainer_state.json", "optimizer.pt"])
def test_a_checkpoint_that_a_kill_cut_short_is_passed_by(tmp_path: Path, cut: str, capsys: Any) -> None:
    """The Trainer writes its state last: a folder without it, or with half of it, is not gone on from."""
    out = _run(tmp_path)
    losses, weights, last = _losses(out), _weights(out), out / "checkpoint-6"
    content = (last / cut).read_bytes()
    (last / "trainer_state.json").unlink()
    (last / cut).write_bytes(content[: len(content) // 2])
    shutil.rmtree(out / "model")
    capsys.readouterr()
    _run(tmp_path)
    assert f"resuming from {out / 'checkpoint-3'}" in capsys.readouterr().out
    assert _losses(out) == losses
    assert all(torch.equal(value, weights[name]) for name, value in _weights(out).items())


def test_a_disk_that_is_too_small_is_said_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_free", lambda folder: 1000)
    with pytest.raises(BadOption, match=r"need about .* GiB and .* are free there"):
        _run(tmp_path)
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_a_disk_that_fills_up_ends_a_run_that_can_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, room = _run(tmp_path / "whole"), iter((2**40, 0))
    with monkeypatch.context() as patch:
        patch.setattr(disk, "_free", lambda folder: next(room))
        patch.setattr(torch, "save", _fails_in("checkpoint-6", torch.save))
        with pytest.raises(BadOption, match=r"is full \(.*free some of it, and the same command goes on"):
            _run(tmp_path / "cut")
        patch.setattr(disk, "_free", lambda folder: 2**40)
        with pytest.raises(RuntimeError, match="unexpected pos"):  # what has another reason stays as it is
            _run(tmp_path / "other")
        for error in (SafetensorError("I/O error: No space left on device (os error 28)"), OSError(28, "full")):
            patch.setattr(torch, "save", _fails_in("checkpoint-6", torch.save, error))
            with pytest.raises(BadOption, match="is full"):
                _run(tmp_path / type(error).__name__)
    cut = _run(tmp_path / "cut")
    assert _losses(cut) == _losses(whole)
    assert all(torch.equal(value, _weights(whole)[name]) for name, value in _weights(cut).items())


LIBTORCH = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 188864 vs 188752")


def _fails_in(folder: str, save: Any, error: Exception = LIBTORCH) -> Any:
    """A write as a library reports it where a disk ends."""

    def failing(content: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if folder in str(path):
            raise error
        save(content, path, *args, **kwargs)

    return failing


def test_the_merged_model_and_the_adapter_say_the_same(tmp_path: Path) -> None:
    out = _run(tmp_path, patch="t5_bias", tuning="lora", max_steps=3)
    ids = tiny.ids(length=40)
    merged = pospatch.from_pretrained(AutoModelForCausalLM, out / "model").eval()
    arguments = parse(["--config", str(out / "config.yaml")])
    torch.manual_seed(arguments.training.seed)  # the same random base
    base = tuning.build(arguments.model).model
    untrained = base(input_ids=ids).logits
    with_adapter = pospatch.load_peft(base, out / "adapter")
    logits = with_adapter.eval()(input_ids=ids).logits
    _close(merged(input_ids=ids).logits, logits)
    assert (logits - untrained).abs().max() > 1e-2
    assert merged.config.use_cache


def test_a_native_result_loads_in_plain_transformers(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    out = _run(tmp_path, tuning="lora", max_steps=2)
    plain = LlamaForCausalLM.from_pretrained(out / "model").eval()
    patched = pospatch.from_pretrained(AutoModelForCausalLM, out / "model").eval()
    assert plain.config.rope_parameters["rope_type"] == "yarn"
    ids = tiny.ids(length=60)
    assert torch.equal(plain(input_ids=ids).logits, patched(input_ids=ids).logits)


def test_evaluation_of_a_run_is_that_of_pospatch_evaluate(tmp_path: Path) -> None:
    out = _run(tmp_path, max_steps=2)
    results = json.loads((out / "results.json").read_text())
    from pospatch import assets
    from pospatch.evaluate import perplexity

    model = pospatch.from_pretrained(AutoModelForCausalLM, out / "model").eval()
    text = assets.text("topics")
    held_out = text[len(text) - int(len(text) * 0.1) :]
    tokenizer = ByT5Tokenizer(extra_ids=0)
    for name in ("base", "target"):
        measured = results["after"][name]
        # the window of the base length begins later in the text: both end at the same token
        shifted = held_out[results["after"]["target"]["length"] - measured["length"] :]
        result = perplexity(
            model, tokenizer, shifted, lengths=measured["length"], protocol="last_k", k=16, windows=1, progress=False
        )
        assert measured["loss"] == pytest.approx(result.rows[0]["loss"], rel=1e-5)


def test_metrics_of_steps_that_are_done_again_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 6)))
    MetricsFile(path, 1).keep_until(3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    MetricsFile(path, 1).keep_until(0)
    assert path.read_text() == ""


def test_a_last_line_that_a_kill_cut_off_is_dropped_and_the_run_goes_on(tmp_path: Path) -> None:
    whole = _run(tmp_path / "whole")
    half = tmp_path / "half" / "out"
    shutil.copytree(whole, half)
    shutil.rmtree(half / "checkpoint-6")
    metrics = half / "metrics.jsonl"
    metrics.write_text(metrics.read_text().rstrip()[:-30])
    _run(tmp_path / "half")
    assert _losses(half) == _losses(whole)


def test_a_broken_line_among_metrics_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for broken in ('{"step": 2, "lo', "7", '{"loss": 1.0}', ""):
        path.write_text(f'{{"step": 1}}\n{broken}\n{{"step": 3}}\n')
        with pytest.raises(BadOption, match=r"metrics\.jsonl, line 2 is no JSON object with a step.*delete that line"):
            MetricsFile(path, 1).keep_until(3)
        assert path.read_text().count("\n") == 3  # nothing is lost meanwhile


# what is shown --------------------------------------------------------------------------------------------------------------


def test_the_bar_says_tokens_a_second_and_a_resumed_one_begins_where_the_run_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = _run(tmp_path, disable_tqdm=False)
    assert re.search(r"6/6 .*\d tokens/s", capsys.readouterr().err)
    shutil.rmtree(out / "checkpoint-6")
    _run(tmp_path, disable_tqdm=False)
    shown = capsys.readouterr().err
    assert "tokens/s" in shown
    assert "3/6 " in shown
    rates = [json.loads(line)["tokens_per_second"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = float(re.findall(r"([\d,]+) tokens/s", shown)[-1].replace(",", ""))
    assert last == pytest.approx(rates[-1], rel=0.5)  # of three steps in both, not of six in the time of three


def test_tensorboard_is_the_default_and_writes_into_the_output_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    out = _run(tmp_path, max_steps=2)
    assert "trackers: tensorboard" in capsys.readouterr().out
    assert list(out.glob("runs/*/events.out.tfevents.*"))
    run(parse(["--config", str(_config(tmp_path / "dry")), "--dry_run", "true"]))
    quiet = _run(tmp_path / "quiet", max_steps=2, report_to="none")
    assert not (quiet / "runs").exists()
    assert not list((tmp_path / "elsewhere").iterdir())
    kept = yaml.safe_load((quiet / "config.yaml").read_text())
    assert kept["report_to"] == "none"
    assert "report_to" not in yaml.safe_load((out / "config.yaml").read_text())


def test_where_tensorboard_is_not_installed_a_run_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (options, plan):
        monkeypatch.setattr(module, "is_tensorboard_available", lambda: False)
    out = _run(tmp_path, max_steps=2)
    assert "trackers: none, as tensorboard is not installed" in capsys.readouterr().out
    assert not (out / "runs").exists()
    _run(tmp_path / "asked", max_steps=2, report_to="none")
    assert "trackers" not in capsys.readouterr().out


# memory -------------------------------------------------------------------------------------------------------------------


def test_more_memory_than_the_machine_has_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "total_memory", lambda device: 100_000)
    with pytest.raises(BadOption, match=r"training needs about .* GiB .* in all.*check_memory: false goes on"):
        _run(tmp_path)
    assert not (tmp_path / "out" / "start.json").exists()
    assert (_run(tmp_path, max_steps=2, check_memory=False) / "results.json").is_file()
    monkeypatch.setattr(plan, "total_memory", lambda device: 10**12)
    monkeypatch.setattr(plan, "available_memory", lambda device: 100_000)
    capsys.readouterr()
    _run(tmp_path / "busy", max_steps=2)
    assert "MORE THAN IS FREE" in capsys.readouterr().out


def test_the_estimate_is_what_a_run_holds_and_parts_of_it_are_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = parse(["--config", str(_config(tmp_path, loss_slice=8))])
    model = tuning.build(arguments.model).model
    weights = sum(value.numel() * value.element_size() for value in model.parameters())
    activations, logits = 2 * 48 * 32 * 4 * 17 * 2, 8 * 2 * 8 * 259
    assert plan.needed(arguments, model) == 4 * weights + activations + logits  # gradients and AdamW's two moments
    assert plan.needed(parse(["--config", str(_config(tmp_path, loss_slice=8, optim="sgd"))]), model) == (
        2 * weights + activations + logits
    )
    monkeypatch.setattr(plan, "total_memory", lambda device: 1)
    plan.check_memory(arguments, model, shared_out=True)
    with pytest.raises(BadOption, match="in all"):
        plan.check_memory(arguments, model, shared_out=False)
