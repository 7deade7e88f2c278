"""The command line on tiny saved models: every command, its files, and one clear message for every bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, ByT5Tokenizer
from typer.testing import CliRunner

import pospatch
from pospatch import inspection, registry
from pospatch.cli import app
from tests import tiny

COMMANDS = [
    "inspect",
    "methods",
    "hosts",
    "apply",
    "export",
    "evaluate",
    "bench",
    "compare",
    "advise",
    "search",
    "demo",
]


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


def said(*words: Any) -> str:
    """Stdout of a command that must succeed."""
    result = run(*words)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def refused(*words: Any, code: int = 1) -> str:
    """The message of a command that must fail: the last line of stderr, below nothing but progress bars."""
    result = run(*words)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line and not line.startswith("Loading weights")]
    if code == 1:
        assert len(lines) == 1, result.stderr
    return "\n".join(lines)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with room for bytes, and a tokenizer of bytes."""
    import transformers as tf

    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=tiny.LENGTH, vocab_size=259,
    )  # fmt: skip
    tf.LlamaForCausalLM(config).save_pretrained(folder)
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    return folder


def test_every_command_shows_help_with_an_example() -> None:
    overview = said("--help")
    for command in COMMANDS:
        assert command in overview
        assert f"pospatch {command}" in said(command, "--help")
    assert set(COMMANDS) == {command.name or command.callback.__name__ for command in app.registered_commands}


def test_inspect(llama: Path) -> None:
    assert "trained length: 32 tokens" in said("inspect", llama)
    seen = json.loads(said("inspect", llama, "--auto", "AutoModelForCausalLM", "--json"))
    assert seen == pospatch.inspect(llama, auto_class="AutoModelForCausalLM").to_dict()
    of_the_model = pospatch.inspect(AutoModelForCausalLM.from_pretrained(llama)).to_dict()
    assert {name: seen[name] for name in of_the_model} == of_the_model


def test_inspect_ends_with_1_where_it_would_be_misread(llama: Path, tmp_path: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    config["rope_parameters"] |= {"rope_type": "linear", "factor": -3.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = run("inspect", tmp_path)
    assert result.exit_code == 1
    assert "bad_numbers" in result.stdout
    assert "factor=-3.0" in result.stdout
    result = run("inspect", tmp_path, "--json")
    assert result.exit_code == 1
    assert "error" in [item["severity"] for item in json.loads(result.stdout)["findings"]]


def test_methods_lists_every_method() -> None:
    listed = said("methods")
    assert list(json.loads(said("methods", "--json"))) == registry.names()
    markdown = said("methods", "--markdown")
    for name in registry.names():
        assert name in listed
        assert f"| `{name}` |" in markdown


@pytest.mark.parametrize("name", registry.names())
def test_methods_describes_each(name: str) -> None:
    from dataclasses import fields

    shown = said("methods", name)
    for item in fields(registry.method_class(name)):
        assert f"  {item.name} (" in shown
    assert "MISSING" not in shown
    assert list(json.loads(said("methods", name, "--json"))) == [name]


def test_methods_for_a_model_say_why_not(llama: Path) -> None:
    fits = json.loads(said("methods", llama, "--auto", "AutoModelForCausalLM", "--json"))
    assert fits == inspection.methods(AutoModelForCausalLM.from_pretrained(llama))
    assert fits["yarn"]["fits"]
    refusals = [entry["reason"] for entry in fits.values() if not entry["fits"]]
    assert refusals
    assert all(refusals)
    assert "no: " in said("methods", llama)


def test_hosts() -> None:
    assert json.loads(said("hosts", "--json")) == inspection.hosts()
    listed, markdown = said("hosts"), said("hosts", "--markdown")
    for family in inspection.hosts():
        assert family in listed
        assert family in markdown


def test_apply_saves_model_and_tokenizer(llama: Path, tmp_path: Path) -> None:
    shown = said("apply", llama, "yarn", "-o", "factor=2", "--output", tmp_path / "yarn")
    assert "plain transformers loads it" in shown
    model = pospatch.apply(AutoModelForCausalLM.from_pretrained(llama), "yarn", factor=2).eval()
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "yarn").eval()
    assert saved.config.rope_parameters["rope_type"] == "yarn"
    tokens = tiny.ids(length=50)
    assert torch.equal(saved(tokens).logits, model(tokens).logits)
    assert ByT5Tokenizer.from_pretrained(tmp_path / "yarn")("a").input_ids


def test_apply_of_several_methods_that_are_not_native(llama: Path, tmp_path: Path) -> None:
    shown = said("apply", llama, "rope+logn", "-o", "rope_theta=5e5", "--output", tmp_path / "two")
    assert "loads where pospatch is imported" in shown
    seen = json.loads(said("inspect", tmp_path / "two", "--auto", "AutoModelForCausalLM", "--json"))
    assert [item["method"] for item in seen["stack"]] == ["rope", "logn"]
    assert seen["stack"][0]["rope_theta"] == 5e5


def test_export(llama: Path, tmp_path: Path) -> None:
    shown = said("export", llama, "--method", "ntk_by_parts", "-o", "factor=2", "--output", tmp_path / "plain")
    assert "verified in a clean process" in shown
    assert "pospatch" not in (tmp_path / "plain" / "config.json").read_text()
    assert "nearest" in refused("export", llama, "--method", "alibi", "--output", tmp_path / "alibi")
    assert not (tmp_path / "alibi").exists()
    assert "no tokenizer.json" in refused("export", llama, "--output", tmp_path / "x.gguf")
    assert "say which with --method" in refused("export", llama, "-o", "factor=2", "--output", tmp_path / "y")
    assert not list(tmp_path.glob("*.gguf"))


def test_evaluate_perplexity_is_that_of_python(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"{number} " for number in range(200)))
    words = ("evaluate", llama, "perplexity", "--text", tmp_path / "text.txt", "--lengths", "64", "--set", "bucket=16")
    shown = said(*words, "--method", "yarn", "-o", "factor=2", "--output", tmp_path / "result")
    assert "perplexity" in shown
    assert (tmp_path / "result.png").stat().st_size > 1000
    (result,) = json.loads((tmp_path / "result.json").read_text())["results"]
    model = pospatch.apply(AutoModelForCausalLM.from_pretrained(llama), "yarn", factor=2)
    from pospatch.evaluate import perplexity

    text = (tmp_path / "text.txt").read_text()
    wanted = perplexity(model, ByT5Tokenizer(extra_ids=0), text, lengths=64, bucket=16, progress=False)
    assert result["rows"] == wanted.rows
    assert result["label"] == "yarn x2"


def test_evaluate_passkey(llama: Path, tmp_path: Path) -> None:
    said("evaluate", llama, "passkey", "--lengths", "400", "--set", "depths=[0.5]", "--output", tmp_path / "keys")
    (result,) = json.loads((tmp_path / "keys.json").read_text())["results"]
    assert [row["trials"] for row in result["rows"]] == [2, 1]


def test_evaluate_of_every_task_is_offered_and_an_encoder_is_loaded_as_one(llama: Path, tmp_path: Path) -> None:
    import transformers as tf

    from pospatch.evaluate import tasks

    shown = " ".join(said("evaluate", "--help").split())
    assert all(name in shown for name in tasks())
    torch.manual_seed(0)
    config = tf.BertConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
                           max_position_embeddings=512, vocab_size=259)  # fmt: skip
    tf.BertModel(config).save_pretrained(tmp_path / "bert")
    ByT5Tokenizer(extra_ids=0).save_pretrained(tmp_path / "bert")
    words = (
        "evaluate",
        tmp_path / "bert",
        "encoder_passkey",
        "--lengths",
        "300",
        "--set",
        "documents=4",
        "--set",
        "queries=2",
    )
    said(*words, "--output", tmp_path / "keys")
    (result,) = json.loads((tmp_path / "keys.json").read_text())["results"]
    assert result["model"]["class"] == "BertModel"


def test_short_guard_needs_no_lengths(llama: Path, tmp_path: Path) -> None:
    said(
        "evaluate",
        llama,
        "short_guard",
        "--text",
        "topics",
        "--method",
        "yarn",
        "-o",
        "factor=2",
        "--output",
        tmp_path / "g",
    )
    (result,) = json.loads((tmp_path / "g.json").read_text())["results"]
    assert result["lengths"] == [tiny.LENGTH]


def test_compare(llama: Path, tmp_path: Path) -> None:
    words = (
        "compare",
        llama,
        "--methods",
        "yarn:factor=2,dca",
        "--lengths",
        "16,64",
        "--text",
        "topics",
        "--windows",
        "2",
    )
    shown = said(*words, "--output", tmp_path / "c")
    assert "yarn factor=2" in shown
    assert "unpatched" in shown
    content = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert {each["label"] for each in content["entries"]} == {"unpatched", "yarn factor=2", "dca"}
    assert "Did you mean 'yarn'" in refused(*words[:3], "yran", *words[4:], "--output", tmp_path / "d")
    assert "no text and no file" in refused(*words[:7], "nowhere.txt", "--output", tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_advise(llama: Path, tmp_path: Path) -> None:
    assert "pospatch.apply(model, 'yarn', factor=2.0)" in said("advise", llama, "--length", 2 * tiny.LENGTH)
    advice = json.loads(said("advise", llama, "--length", 64, "--json"))
    assert advice == pospatch.advise(AutoModelForCausalLM.from_pretrained(llama), 64).to_dict()
    assert "no folder" in refused("advise", "/nowhere", "--length", 64)
    assert "no config" in refused("advise", tmp_path, "--length", 64)
    assert "positive" in refused("advise", llama, "--length", 0)


def test_search(llama: Path, tmp_path: Path) -> None:
    words = ("search", llama, "--length", 400, "--text", "topics", "--needles", "1", "--population", "4", "--generations", "1",
             "--mutations", "1", "--crossovers", "1", "--parents", "2")  # fmt: skip
    shown = said(*words, "--evaluations", "3", "--output", tmp_path / "f")
    assert "goes on from here" in shown
    assert "all generations" in said(*words, "--output", tmp_path / "f")
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["complete"]
    assert len(found["long_factor"]) == 4
    assert "above the trained length" in refused(*words[:3], "20", *words[4:], "--output", tmp_path / "g")
    assert not (tmp_path / "g.json").exists()


def test_bad_models(llama: Path, tmp_path: Path) -> None:
    assert "no folder /nowhere" in refused("inspect", "/nowhere")
    assert "is no checkpoint" in refused("inspect", tmp_path)
    assert "no model could be loaded" in refused("methods", tmp_path)
    for command in ("inspect", "methods"):
        assert "AutoModel class" in refused(command, llama, "--auto", "AutoTokenizer")
        assert "AutoModel class" in refused(command, llama, "--auto", "Nothing")
    assert "Did you mean 'yarn'" in refused("methods", "yran")
    assert "--dtype=half must be one of" in refused("apply", llama, "rope", "--dtype", "half", "--output", tmp_path)
    assert "no tokenizer" in refused("evaluate", tmp_path, "passkey", "--lengths", "400")
    assert "goes with no name" in refused("methods", "yarn", "--markdown")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nothing",), "unknown method 'nothing'"),
        (("yran",), "Did you mean 'yarn'"),
        (("yarn",), "'factor' is required"),
        (("yarn", "-o", "factr=2"), "Did you mean 'factor'"),
        (("yarn", "-o", "factor=half"), "factor"),
        (("yarn", "-o", "factor=0.5"), "factor"),
        (("yarn", "-o", "factor"), "must be NAME=VALUE"),
        (("yarn", "-o", "factor=2", "-o", "factor=4"), "given twice"),
        (("rope+yarn+nothing",), "unknown method 'nothing'"),
    ],
)
def test_apply_refuses_and_writes_nothing(llama: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    assert message in refused("apply", llama, *words, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_made(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    message = "file, which cannot be made"
    assert message in refused("apply", llama, "yarn", "-o", "factor=2", "--output", tmp_path / "file")
    assert message in refused(
        "evaluate", llama, "passkey", "--lengths", "400", "--output", tmp_path / "file" / "result"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("perplexty", "--lengths", "64"), "Did you mean 'perplexity'"),
        (("perplexity", "--lengths", "many"), "integers separated by commas"),
        (("perplexity", "--lengths", "2"), "at least 8"),
        (("perplexity", "--lengths", "64", "--text", "nowhere.txt"), "no text and no file"),
        (("perplexity", "--lengths", "64", "--set", "buckt=3"), "Did you mean 'bucket'"),
        (("perplexity", "--lengths", "64", "-o", "factor=2"), "say which with --method"),
        (("perplexity", "--lengths", "64", "--method", "yarn"), "'factor' is required"),
        (("passkey", "--lengths", "400", "--text", "topics"), "would be ignored"),
    ],
)
def test_evaluate_refuses(llama: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    if "--text" not in words and words[0] == "perplexity":
        words = (*words, "--text", "topics")
    assert message in refused("evaluate", llama, *words, "--output", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_argument_is_a_usage_error(llama: Path) -> None:
    assert "--lengths" in refused("evaluate", llama, "perplexity", "--text", "topics")
    assert "task" in refused("evaluate", llama, code=2)


def test_an_interrupt_says_what_stays(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pospatch import evaluate

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "run", interrupted)
    message = refused("evaluate", llama, "passkey", "--lengths", "400", "--output", tmp_path / "out", code=130)
    assert message.strip().splitlines()[-1] == "interrupted; the same command goes on from here"
