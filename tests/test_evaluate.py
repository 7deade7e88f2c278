"""The measurements: losses against the model's own, exact lengths, resumption, refusals, files."""

from __future__ import annotations

import json
import math
import random
from importlib import import_module
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from pospatch import evaluate
from pospatch.cli import app
from pospatch.errors import BadOption, BadOptionType, PospatchError, UnknownName, UnsupportedHost
from pospatch.evaluate import _progress
from pospatch.evaluate._fingerprint import fingerprint
from pospatch.evaluate._head import SlicedHead
from pospatch.evaluate._result import Cells, Result
from pospatch.evaluate._retrieval import Reader, wilson
from tests.measured import CAUSAL, COMMON, LLAMA, TEXT, characters, own_losses, text_ids, tiny

# The package offers functions of the same names as these modules.
passkey_task = import_module("pospatch.evaluate.passkey")
perplexity_task = import_module("pospatch.evaluate.perplexity")


@pytest.fixture(scope="module")
def tokenizer():
    return characters()


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.mark.parametrize("kind", CAUSAL)
def test_sliced_losses_are_the_models_own(kind, tokenizer):
    model, ids = tiny(kind), text_ids(tokenizer, 101)
    torch.testing.assert_close(SlicedHead(model, size=16).losses(ids), own_losses(model, ids), rtol=1e-4, atol=1e-4)


def test_sliced_losses_of_a_peft_model(tokenizer):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny("llama"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    ids = text_ids(tokenizer, 60)
    torch.testing.assert_close(
        SlicedHead(model, size=16).losses(ids), own_losses(model.eval(), ids), rtol=1e-4, atol=1e-4
    )


def test_logits_never_exist_for_more_than_a_slice(model, tokenizer):
    widths = []
    handle = model.lm_head.register_forward_hook(lambda module, args, out: widths.append(out.shape[1]))
    try:
        head = SlicedHead(model, size=32)
        widths.clear()
        head.losses(text_ids(tokenizer, 400))
    finally:
        handle.remove()
    assert max(widths) == 32


def test_model_is_left_as_it_was(tokenizer):
    model = tiny("llama", attention_dropout=0.5).train()
    model.model.layers[0].eval()
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    SlicedHead(model).losses(text_ids(tokenizer, 50))
    after = {name: dict(module.__dict__) for name, module in model.named_modules()}
    assert before.keys() == after.keys()
    assert all(before[name].keys() == after[name].keys() for name in before)
    assert model.training
    assert not model.model.layers[0].training
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("auto", "kind", "config"),
    [
        (
            AutoModelForSeq2SeqLM,
            "t5",
            {"vocab_size": 260, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4},
        ),
        (AutoModelForMaskedLM, "bert", {**COMMON, "intermediate_size": 48}),
        (AutoModel, "llama", LLAMA),
    ],
)
def test_other_models_are_refused(auto, kind, config):
    torch.manual_seed(0)
    other = auto.from_config(AutoConfig.for_model(kind, **config))
    for parameter in other.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.4)
    with pytest.raises(UnsupportedHost, match=r"causal|AutoModelForCausalLM") as caught:
        SlicedHead(other)
    assert isinstance(caught.value, NotImplementedError)


def test_by_position(model, tokenizer):
    result = evaluate.perplexity(model, tokenizer, TEXT, lengths=100, bucket=32, slice_size=7, progress=False)
    losses = own_losses(model, text_ids(tokenizer, 100)).double()
    wanted = [losses[:31], losses[31:63], losses[63:95], losses[95:]]
    assert [row["n"] for row in result.rows] == [31, 32, 32, 4]
    assert [(row["start"], row["end"]) for row in result.rows] == [(0, 32), (32, 64), (64, 96), (96, 100)]
    for row, piece in zip(result.rows, wanted, strict=True):
        assert row["perplexity"] == pytest.approx(math.exp(piece.mean()), rel=1e-4)
    assert result.summary["perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-4)
    assert result.n_scored_tokens == 99


def test_truncated(model, tokenizer):
    result = evaluate.perplexity(model, tokenizer, TEXT, lengths=[80, 20], protocol="truncated", progress=False)
    assert [row["length"] for row in result.rows] == [20, 80]
    for row in result.rows:
        losses = own_losses(model, text_ids(tokenizer, row["length"]))
        assert row["loss"] == pytest.approx(losses.mean().item(), rel=1e-4)
        assert row["n"] == row["length"] - 1


def test_last_k_scores_the_same_tokens_at_every_length(model, tokenizer):
    options = {"lengths": [24, 64], "k": 8, "windows": 3}
    result = evaluate.perplexity(model, tokenizer, TEXT, protocol="last_k", progress=False, **options)
    ids = text_ids(tokenizer, 80)
    for row in result.rows:
        pieces = [own_losses(model, ids[:, end - row["length"] : end])[-8:] for end in (64, 72, 80)]
        assert row["loss"] == pytest.approx(torch.cat(pieces).mean().item(), rel=1e-4)
        assert row["n"] == 24


def test_beginning_of_sequence_token_counts_towards_the_length(model, tokenizer):
    from tokenizers.processors import TemplateProcessing

    raw = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    raw.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    beginning = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    result = evaluate.perplexity(model, beginning, TEXT, lengths=40, protocol="truncated", progress=False)
    ids = torch.cat([torch.tensor([[1]]), text_ids(tokenizer, 39)], dim=1)
    assert result.rows[0]["loss"] == pytest.approx(own_losses(model, ids).mean().item(), rel=1e-4)
    assert result.text is not None
    assert result.text["bos"] is True


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"text": "  \n"}, BadOption, "empty"),
        ({"text": "short"}, BadOption, r"5 tokens.*64 are wanted"),
        ({"text": None}, BadOptionType, "string"),
        ({"protocol": "truncate"}, UnknownName, "Did you mean 'truncated'"),
        ({"lengths": []}, BadOption, "at least 8"),
        ({"lengths": 3}, BadOption, "at least 8"),
        ({"lengths": 64.0}, BadOptionType, "integers"),
        ({"lengths": ["64"]}, BadOptionType, "integers"),
        ({"bucket": 0}, BadOption, "positive"),
        ({"bucket": 1}, BadOption, "at least 2"),
        ({"protocol": "last_k", "k": 64}, BadOption, "below the shortest"),
    ],
)
def test_perplexity_refuses(model, tokenizer, change, error, message):
    options = {"text": TEXT, "lengths": 64, "progress": False, **change}
    with pytest.raises(error, match=message):
        evaluate.perplexity(model, tokenizer, **options)


def test_losses_that_are_not_finite_are_null_in_json(tokenizer, tmp_path):
    broken = tiny("llama")
    head = SlicedHead(broken)
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    assert torch.isnan(head.losses(text_ids(tokenizer, 40))).all()
    rows = perplexity_task._rows(64, [{"0": [float("nan"), 63]}], 64)
    assert rows[0]["loss"] is None
    assert rows[0]["perplexity"] is None
    assert perplexity_task._summary(rows) == {"perplexity": None, "last": None}


@pytest.mark.parametrize("length", [200, 333, 1000])
@pytest.mark.parametrize("depth", [0.0, 0.3, 0.5, 1.0, None])
def test_passkey_prompts_have_the_exact_length(tokenizer, length, depth):
    length += 200  # one token a character
    prompt = passkey_task.Prompt.for_tokenizer(tokenizer)
    ids, answer = prompt.build(length, depth, "24680")
    text = tokenizer.decode(ids)
    assert len(ids) + len(answer) == length
    assert tokenizer.decode(answer) == "24680"
    assert text.endswith("The pass key is ")
    assert text.count("24680") == (0 if depth is None else 2)
    if depth is not None:
        filler = text[text.index("quiz you about the important information there.") + 49 : text.rindex("\nWhat")]
        needle = "The pass key is 24680. Remember it. 24680 is the pass key. "
        place = filler.index(needle) / (len(filler) - len(needle))
        assert place == pytest.approx(depth, abs=30 / (len(filler) - len(needle)))
        rest = filler.replace(needle, "")
        assert rest in "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. " * 20


def test_passkey_forced_reads_the_places_before_the_digits(model, tokenizer):
    reader = Reader(model, tokenizer, "forced")
    ids, answer = passkey_task.Prompt.for_tokenizer(tokenizer).build(400, 0.5, "13579")
    with torch.no_grad():
        logits = model(torch.tensor([ids + answer])).logits[0]
    assert reader._forced(ids, answer, lambda: None) == logits[-6:-1].argmax(-1).tolist()


def test_passkey_counts_what_the_model_says(model, tokenizer, monkeypatch):
    def knows_early_keys(self, ids, answer, advance):
        early = tokenizer.decode(ids).find("Remember") < 300
        return answer if early else [3] * len(answer)

    monkeypatch.setattr(Reader, "_forced", knows_early_keys)
    options = {"lengths": [420, 800], "depths": [0.0, 1.0], "trials": 3, "controls": 2}
    result = evaluate.passkey(model, tokenizer, progress=False, **options)
    found = {(row["length"], row["depth"]): (row["right"], row["trials"]) for row in result.rows}
    assert found[800, 0.0] == (3, 3)
    assert found[800, 1.0] == (0, 3)
    assert found[800, None][1] == 2
    keys = [answer["key"] for row in result.rows for answer in row["answers"]]
    assert len(set(keys)) == len(keys)
    again = evaluate.passkey(model, tokenizer, progress=False, **{**options, "lengths": 800})
    assert [row["answers"] for row in again.rows] == [row["answers"] for row in result.rows if row["length"] == 800]


def test_passkey_generate_agrees_with_forced(model, tokenizer):
    options = {"lengths": 420, "depths": 2, "trials": 1, "progress": False}
    both = [evaluate.passkey(model, tokenizer, protocol=each, **options) for each in ("forced", "generate")]
    rights = [[row["right"] for row in result.rows] for result in both]
    assert rights[0] == rights[1]
    with torch.no_grad():
        prompt = passkey_task.Prompt.for_tokenizer(tokenizer)
        ids, answer = prompt.build(420, 0.25, both[1].rows[0]["answers"][0]["key"])
        first = model(torch.tensor([ids])).logits[0, -1].argmax().item()
    assert both[1].rows[0]["answers"][0]["said"][:1] == tokenizer.decode([first])[:1]
    assert len(answer) == 5


def test_a_picture_that_cannot_be_written_leaves_the_numbers(model, tokenizer, tmp_path, monkeypatch):
    write = Path.write_bytes

    def full(path, content):
        if path.name.startswith(".r.png"):
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BadOption, match=r"r\.png cannot be written: No space left"):
        evaluate.passkey(model, tokenizer, lengths=420, depths=1, trials=1, path=tmp_path / "r", progress=False)
    assert Result.load(tmp_path / "r.json")[0].task == "passkey"
    assert "passkey" in (tmp_path / "r.md").read_text()


def test_passkey_refuses_a_tokenizer_that_merges_the_key(model):
    class Whole:
        bos_token_id = None

        def __call__(self, text, **options):
            return {"input_ids": [hash(text) % 997] if text else []}

    with pytest.raises(UnsupportedHost, match="merges the key"):
        passkey_task.Prompt.for_tokenizer(Whole())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lengths": 200}, BadOption, "needs .* tokens"),
        ({"lengths": 10**9}, BadOption, "GiB are free"),
        ({"depths": [1.5]}, BadOption, "from 0"),
        ({"depths": 0}, BadOption, "at least 1"),
        ({"depths": "all"}, BadOption, "count or a list"),
        ({"trials": 0}, BadOption, "trials"),
        ({"protocol": "forcd"}, UnknownName, "Did you mean 'forced'"),
    ],
)
def test_passkey_refuses(model, tokenizer, change, error, message):
    with pytest.raises(error, match=message):
        evaluate.passkey(model, tokenizer, **{"lengths": 500, "progress": False, **change})


@pytest.mark.parametrize(
    ("right", "trials", "wanted"), [(0, 10, (0.0, 0.2775)), (5, 10, (0.2366, 0.7634)), (10, 10, (0.7225, 1))]
)
def test_wilson(right, trials, wanted):
    assert wilson(right, trials) == pytest.approx(wanted, abs=1e-4)


def test_tasks_by_name(model, tokenizer):
    assert {"passkey", "perplexity"} <= set(evaluate.tasks())
    for name in evaluate.tasks():
        module = evaluate.task_of(name)
        assert getattr(evaluate, name) is getattr(module, name)
        assert callable(module.draw)
    with pytest.raises(UnknownName, match="Did you mean 'perplexity'"):
        evaluate.run("perplexty", model, tokenizer)
    with pytest.raises(BadOptionType, match="Did you mean 'lengths'"):
        evaluate.run("perplexity", model, tokenizer, text=TEXT, length=64)
    with pytest.raises(BadOptionType, match="needs text, lengths"):
        evaluate.run("perplexity", model, tokenizer)
    assert evaluate.run("perplexity", model, tokenizer, text=TEXT, lengths=64, progress=False).n_scored_tokens == 63


def test_an_interrupted_run_goes_on_where_it_was(model, tokenizer, tmp_path, monkeypatch):
    options = {
        "text": TEXT,
        "lengths": [16, 32, 48],
        "protocol": "truncated",
        "progress": False,
        "path": tmp_path / "out",
    }
    own, seen = perplexity_task._Scorer.score, []

    def counted(self, length, *rest):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(length)
        return own(self, length, *rest)

    monkeypatch.setattr(perplexity_task._Scorer, "score", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate.perplexity(model, tokenizer, **options)
    assert seen == [16, 32]
    assert (tmp_path / "out.partial.json").is_file()
    monkeypatch.setattr(
        perplexity_task._Scorer, "score", lambda self, *args: (seen.append(args[0]), own(self, *args))[1]
    )
    result = evaluate.perplexity(model, tokenizer, **options)
    assert seen == [16, 32, 48]
    assert not (tmp_path / "out.partial.json").exists()
    fresh = evaluate.perplexity(model, tokenizer, **{**options, "path": None})
    assert fresh.rows == result.rows


def test_cells_of_another_run_are_not_used(tmp_path):
    first = Cells(tmp_path / "x.json", {"text": "a"})
    first["1"] = 5
    assert "1" in Cells(tmp_path / "x", {"text": "a"})
    assert "1" not in Cells(tmp_path / "x", {"text": "b"})


def interrupted_after_one_cell(monkeypatch, run):
    own = Cells.__setitem__

    def stopped(self, cell, value):
        own(self, cell, value)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Cells, "__setitem__", stopped)
        with pytest.raises(KeyboardInterrupt):
            run()


def test_cells_of_another_model_in_a_folder_of_the_same_name_are_not_used(model, tokenizer, tmp_path, monkeypatch):
    other = tiny("llama")
    with torch.no_grad():
        other.lm_head.weight.mul_(1.5)
    for seed, each in enumerate((model, other)):
        monkeypatch.setattr(each.config, "_name_or_path", f"runs/seed-{seed}/model")
    options = {"lengths": [16, 32], "protocol": "truncated", "progress": False}
    interrupted_after_one_cell(
        monkeypatch, lambda: evaluate.perplexity(model, tokenizer, TEXT, path=tmp_path / "out", **options)
    )
    assert (tmp_path / "out.partial.json").is_file()
    found = evaluate.perplexity(other, tokenizer, TEXT, path=tmp_path / "out", **options)
    assert found.rows == evaluate.perplexity(other, tokenizer, TEXT, **options).rows
    assert found.model["name"] == "model"


def test_a_fingerprint_is_that_of_the_weights_alone(model, tokenizer, tmp_path):
    import pospatch

    wanted = fingerprint(model)
    own_losses(model, text_ids(tokenizer, 40))
    model.save_pretrained(tmp_path)
    assert fingerprint(AutoModelForCausalLM.from_pretrained(tmp_path)) == fingerprint(model) == wanted
    for change in (lambda x: x.mul_(1.001), lambda x: x.copy_(x.flip(0))):
        other = tiny("llama")
        with torch.no_grad():
            change(other.model.layers[1].mlp.up_proj.weight)
        assert fingerprint(other) != wanted
    assert fingerprint(tiny("llama").to(torch.bfloat16)) != wanted
    patched = pospatch.apply(tiny("llama"), "learned")
    before = fingerprint(patched)
    assert before == fingerprint(pospatch.apply(tiny("llama"), "learned")) != wanted
    with torch.no_grad():
        next(each for name, each in patched.named_parameters() if "pospatch" in name).add_(1)
    assert fingerprint(patched) != before


def test_a_fingerprint_reads_tensors_of_every_kind():
    def made(value, **kinds):
        module = nn.Module()
        for name, tensor in {"transposed": torch.full((5, 3), value).T, **kinds}.items():
            module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        module.register_buffer("packed", torch.tensor([1, 2], dtype=torch.int8))
        module.register_buffer("computed", torch.rand(3), persistent=False)
        return module

    kinds = {"scalar": torch.tensor(2.0), "empty": torch.zeros(0, 4), "short": torch.ones(4, dtype=torch.bfloat16)}
    assert fingerprint(made(1.0, **kinds)) == fingerprint(made(1.0, **kinds)) != fingerprint(made(2.0, **kinds))
    other = made(1.0, **kinds)
    other.packed[1] = 3
    assert fingerprint(other) != fingerprint(made(1.0, **kinds))
    skeleton = made(1.0, **kinds).to("meta")
    assert fingerprint(skeleton) == fingerprint(made(2.0, **kinds).to("meta"))
    assert fingerprint(skeleton) != fingerprint(made(1.0).to("meta"))


def test_results_of_before_the_fingerprint_are_read(model, tokenizer, tmp_path):
    evaluate.perplexity(model, tokenizer, TEXT, lengths=32, path=tmp_path / "old", progress=False)
    content = json.loads((tmp_path / "old.json").read_text())
    assert len(content["results"][0]["model"].pop("weights")) == 64
    (tmp_path / "old.json").write_text(json.dumps(content))
    evaluate.compare(Result.load(tmp_path / "old.json"), tmp_path / "again")
    assert json.loads((tmp_path / "again.json").read_text()) == content


def test_the_table_says_what_was_measured(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(model.config, "_name_or_path", "runs/a|b_c")
    options = {"lengths": [16, 32], "protocol": "truncated", "progress": False}
    result = evaluate.perplexity(model, tokenizer, "a|b\n" + TEXT, path=tmp_path / "one.md", **options)
    head, *rest = (tmp_path / "one.md").read_text().split("\n\n")
    for words in ("perplexity", "truncated", "as it is", r"a\|b\_c", result.text["sha256"]):
        assert words in head
    assert r"a\|b" in head.splitlines()[1]
    assert rest == [
        "| length | loss | perplexity | n |\n| --- | --- | --- | --- |\n"
        + "".join(f"| {r['length']} | {r['loss']:.4g} | {r['perplexity']:.4g} | {r['n']} |\n" for r in result.rows)
    ]
    keys = evaluate.passkey(model, tokenizer, lengths=420, depths=1, trials=1, progress=False)
    evaluate.compare([keys, keys], tmp_path / "keys")
    words = (tmp_path / "keys.md").read_text()
    assert words.count("**passkey**") == 2
    assert "answers" not in words
    assert words.count("| 420 | 0.5 | False | 1 |") == 2


def test_the_command_names_the_files_that_it_wrote(model, tokenizer, tmp_path):
    for each in (model, tokenizer):
        each.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT)
    words = ["evaluate", tmp_path / "model", "perplexity", "--lengths", 32, "--text", tmp_path / "text.txt",
             "--output", tmp_path / "run.v1"]  # fmt: skip
    shown = CliRunner().invoke(app, [str(each) for each in words])
    assert shown.exit_code == 0, shown.output
    assert f"wrote {tmp_path / 'run.v1'}.json, .md and .png" in shown.output
    assert sorted(each.name for each in tmp_path.glob("run*")) == ["run.v1.json", "run.v1.md", "run.v1.png"]


def test_files_and_comparison(model, tokenizer, tmp_path):
    options = {"text": TEXT, "lengths": 96, "bucket": 24, "progress": False}
    result = evaluate.perplexity(model, tokenizer, path=tmp_path / "deep" / "one.png", **options)
    saved = json.loads((tmp_path / "deep" / "one.json").read_text())["results"][0]
    assert (tmp_path / "deep" / "one.png").read_bytes()[:4] == b"\x89PNG"
    assert saved["protocol"] == "by_position"
    assert len(saved["text"]["sha256"]) == 64
    assert saved["versions"]["torch"] == torch.__version__
    assert Result.load(tmp_path / "deep" / "one.json")[0].rows == result.rows
    other = evaluate.perplexity(model, tokenizer, **{**options, "protocol": "truncated"})
    with pytest.raises(BadOption, match="one task and protocol"):
        evaluate.compare([result, other], tmp_path / "both")
    assert not (tmp_path / "both.json").exists()
    keys = evaluate.passkey(model, tokenizer, lengths=500, depths=2, trials=1, progress=False)
    json_file, picture = evaluate.compare([keys, keys], tmp_path / "keys")
    assert len(Result.load(json_file)) == 2
    assert picture.stat().st_size > 1000
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(BadOption, match="no pospatch results"):
        Result.load(tmp_path / "other.json")


def test_every_error_is_a_pospatch_error_and_a_builtin():
    for error, builtin in ((BadOption, ValueError), (BadOptionType, TypeError), (UnsupportedHost, NotImplementedError)):
        assert issubclass(error, PospatchError)
        assert issubclass(error, builtin)


def test_passkey_keys_have_five_digits():
    keys = [random.Random(f"0/{trial}").randrange(10000, 100000) for trial in range(200)]
    assert all(len(str(key)) == 5 for key in keys)


def test_a_patched_model_is_measured_patched_and_named(tokenizer):
    import pospatch

    patched = tiny("llama", max_position_embeddings=32)
    plain = evaluate.perplexity(patched, tokenizer, TEXT, lengths=96, bucket=32, progress=False)
    pospatch.apply(patched, "linear", factor=4.0)
    result = evaluate.perplexity(patched, tokenizer, TEXT, lengths=96, bucket=32, progress=False)
    assert (plain.label, result.label) == ("as it is", "linear x4")
    assert result.model["positions"]["stack"] == [{"method": "linear", "factor": 4.0}]
    assert result.model["positions"]["trained_length"] == plain.model["positions"]["trained_length"] == 32
    losses = own_losses(patched, text_ids(tokenizer, 96)).double()
    assert result.summary["perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-4)
    assert result.summary["perplexity"] != pytest.approx(plain.summary["perplexity"], rel=1e-3)


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where stderr is no terminal a bar would show nothing for as long as it runs."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):  # by which rich takes any stream for a terminal
        monkeypatch.delenv(name, raising=False)
    for every, lines in ((0.0, 3), (60.0, 0)):
        monkeypatch.setattr(_progress, "EVERY", every)
        with _progress.bar("reading [1]", 3, True) as advance:
            for _ in range(3):
                advance()
        said = capsys.readouterr().err.splitlines()
        assert len(said) == lines
        assert all(line.startswith(f"reading [1]: {done} of 3, about 0.0") for done, line in enumerate(said, 1))
    monkeypatch.setattr(_progress, "EVERY", 0.0)
    with _progress.bar("reading", 1, False) as advance:
        advance()
    assert capsys.readouterr().err == ""
