"""The tasks beyond perplexity and passkey: each against a slow restatement, what it refuses, and that all can go on."""

from __future__ import annotations

import inspect
import json
import math
from collections import Counter
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import pospatch
from pospatch import evaluate
from pospatch.assets import _named
from pospatch.errors import AssetError, BadOption, PospatchError, UnknownName, UnsupportedHost
from pospatch.evaluate import _limits
from pospatch.evaluate._base import unpatched
from pospatch.evaluate._encode import Wrapping
from pospatch.evaluate._head import SlicedHead
from pospatch.evaluate._retrieval import Question, Reader
from tests.measured import COMMON, TEXT, characters, own_losses, text_ids, tiny

PROSE = " ".join(f"Sentence {n} tells of {chr(97 + n % 26) * (3 + n % 5)} and ends." for n in range(400))
HARNESS = find_spec("lm_eval") is not None
# What each task wants besides its defaults to run in a second on a tiny model.
QUICK = {
    "encoder_passkey": {"lengths": 300, "queries": 3, "documents": 4},
    "generation": {"lengths": [32, 64], "new_tokens": 3, "repeats": 2},
    "kth_item": {"lengths": 700, "items": 3, "depths": 2, "trials": 1},
    "longbench": {"lengths": 512, "subtasks": ["qasper"]},
    "longppl": {"lengths": [96, 128], "trunc": 32, "block": 24},
    "needle": {"lengths": 400, "depths": 2, "trials": 1},
    "pair_ranking": {"lengths": [16, 32], "pairs": 8},
    "passkey": {"lengths": 420, "depths": 1, "trials": 1},
    "perplexity": {"lengths": 64},
    "ruler": {"lengths": 700, "subtasks": ["niah_single_2"], "samples": 2},
    "short_guard": {"lengths": [16, 32], "windows": 2},
}


@pytest.fixture(scope="module")
def tokenizer():
    return characters()


@pytest.fixture
def model():
    return tiny("llama", max_position_embeddings=64)


def encoder(**changes):
    import transformers as tf

    torch.manual_seed(0)
    config = tf.BertConfig(**{**COMMON, "intermediate_size": 48, "max_position_embeddings": 512, **changes})
    return AutoModel.from_config(config).eval()


def subject(task):
    """A patched model that the task can measure."""
    if getattr(evaluate.task_of(task), "AUTO", "") == "AutoModel":
        return pospatch.apply(encoder(), "rope")
    return pospatch.apply(tiny("llama", max_position_embeddings=64), "linear", factor=4.0)


def options(task, **more):
    wanted = {**QUICK[task], "progress": False, **more}
    return wanted | ({"text": PROSE} if "text" in inspect.signature(getattr(evaluate, task)).parameters else {})


NEEDS_HARNESS = {"ruler", "longbench"}
OWN = [task for task in evaluate.tasks() if task not in NEEDS_HARNESS]


@pytest.mark.parametrize("task", OWN)
def test_every_result_names_its_protocol_and_writes_its_files(task, tokenizer, tmp_path):
    result = evaluate.run(task, subject(task), tokenizer, path=tmp_path / "out", **options(task))
    saved = json.loads((tmp_path / "out.json").read_text())["results"][0]
    assert saved == json.loads(json.dumps(result.to_dict()))
    assert saved["protocol"] in evaluate.task_of(task).PROTOCOLS
    assert saved["versions"]["transformers"]
    assert saved["model"]["positions"]["stack"]
    assert saved["rows"]
    assert saved["summary"]
    assert saved["text"] is None or len(saved["text"]["sha256"]) == 64
    assert (tmp_path / "out.png").stat().st_size > 1000
    lines = [line for line in (tmp_path / "out.md").read_text().splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(saved["rows"])
    assert [each.name for each in tmp_path.glob("*.partial.json")] == []


@pytest.mark.parametrize("task", OWN)
def test_every_interrupted_run_goes_on_where_it_was(task, tokenizer, tmp_path, monkeypatch):
    """Stopped after the first finished cell, the second run computes only the others."""
    from pospatch.evaluate._result import Cells

    if task == "perplexity":
        more = {"protocol": "last_k", "k": 8, "windows": 3}
    else:
        more = {"lengths": [300, 400]} if task == "encoder_passkey" else {}
    own, computed = Cells.__setitem__, []

    def stopped(self, cell, value):
        own(self, cell, value)
        computed.append(cell)
        if len(computed) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Cells, "__setitem__", stopped)
    patched = subject(task)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(task, patched, tokenizer, path=tmp_path / "out", **options(task, **more))
    assert (tmp_path / "out.partial.json").is_file()
    evaluate.run(task, patched, tokenizer, path=tmp_path / "out", **options(task, **more))
    assert len(computed) > 1
    assert len(set(computed)) == len(computed)


def test_strided_scores_every_token_once_with_weights_by_token(model, tokenizer):
    more = {"lengths": [24, 40], "protocol": "strided", "stride": 7, "windows": 3, "progress": False}
    result = evaluate.perplexity(model, tokenizer, TEXT, **more)
    ids, total = text_ids(tokenizer, 54), 54
    for row in result.rows:
        length = row["length"]
        pieces, done = [own_losses(model, ids[:, :length])], length
        while done < total:
            end = min(done + 7, total)
            pieces.append(own_losses(model, ids[:, end - length : end])[done - end :])
            done = end
        losses = torch.cat(pieces)
        assert row["n"] == len(losses) == total - 1
        assert row["loss"] == pytest.approx(losses.mean().item(), rel=1e-4)
    with pytest.raises(BadOption, match="at most the shortest"):
        evaluate.perplexity(model, tokenizer, TEXT, **{**more, "stride": 25})


@pytest.mark.parametrize("digits", [1, 5, 10])
def test_passkeys_of_any_digits(model, tokenizer, digits):
    result = evaluate.passkey(model, tokenizer, lengths=420, depths=1, trials=2, digits=digits, progress=False)
    answers = [answer for row in result.rows for answer in row["answers"]]
    assert {len(answer["key"]) for answer in answers} == {digits}
    assert result.n_scored_tokens == digits * len(answers)
    with pytest.raises(BadOption, match="digits"):
        evaluate.passkey(model, tokenizer, lengths=420, digits=0, progress=False)


def asked(monkeypatch, tokenizer):
    """Every question that a task asks, as (text of the prompt, question)."""
    seen = []

    def listen(self, question, advance):
        assert isinstance(question, Question)
        seen.append((tokenizer.decode(question.ids), question))
        right = question.key in seen[-1][0]
        return {"key": question.key, "said": question.key, "right": right, "tokens": len(question.answer),
                **({"listed": right} if question.among else {})}  # fmt: skip

    monkeypatch.setattr(Reader, "ask", listen)
    return seen


@pytest.mark.parametrize("distractors", [0, 3])
def test_needles_stand_after_sentences_at_their_depth(model, tokenizer, monkeypatch, distractors):
    seen = asked(monkeypatch, tokenizer)
    more = {"lengths": [500, 900], "depths": [0.0, 0.5, 1.0], "trials": 2, "distractors": distractors}
    result = evaluate.needle(model, tokenizer, PROSE, progress=False, **more)
    assert result.summary["retrieved"]["rate"] == 1
    assert result.summary["control"]["rate"] == 0
    plan = [(n, d) for n in (500, 900) for d in (0.0, 0.5, 1.0) for _ in range(2)] + [(500, None), (900, None)]
    for (length, depth), (text, question) in zip(plan, seen, strict=True):
        assert len(question.ids) + len(question.answer) == length
        assert text.count("The secret number of") == 1 + distractors + (depth is not None)
        if depth is None:
            continue
        before, _, rest = text.partition(f" is {question.key}.")
        before = before[: before.rindex("\nThe secret number")]
        hay = rest.rindex("\n\nWhat is the secret number")
        others = 36 * distractors
        place = len(before) / (len(before) + hay)
        assert place == pytest.approx(depth, abs=(40 + others) / (len(before) + hay))
        assert not before.strip() or before.strip().endswith(".") or depth == 1.0


def test_the_kth_item_is_asked_by_its_order_alone(model, tokenizer, monkeypatch):
    seen = asked(monkeypatch, tokenizer)
    result = evaluate.kth_item(
        model, tokenizer, lengths=1000, items=5, depths=[0.0, 0.5, 1.0], trials=2, progress=False
    )
    assert result.options["chance"] == 0.2
    for index, (text, question) in enumerate(seen):
        assert len(question.ids) + len(question.answer) == 1000
        items = [line.removeprefix("Item: ").split(".")[0] for line in text.splitlines() if line.startswith("Item: ")]
        k = int(text.rpartition("Item number ")[2].split()[0])
        if index < 6:
            assert items == list(question.among)
            assert len(set(items)) == 5
            assert k == (1, 3, 5)[index // 2]
            assert items[k - 1] == question.key
        else:
            assert items == []
    with pytest.raises(BadOption, match="give fewer items"):
        evaluate.kth_item(model, tokenizer, lengths=300, items=40, progress=False)


def test_answers_from_the_list_are_counted_apart(model, tokenizer, monkeypatch):
    monkeypatch.setattr(Reader, "_forced", lambda self, ids, answer, advance: tokenizer("zebra")["input_ids"])
    question = Question(ids=[5], answer=[6], key="apple", among=("apple", "zebra"))
    answer = Reader(model, tokenizer, "forced").ask(question, lambda: None)
    assert (answer["right"], answer["listed"]) == (False, True)


@pytest.mark.parametrize("own", [True, False])
def test_longppl_is_that_of_the_paper(tokenizer, own):
    model = tiny("llama")
    judge = model if own else tiny("gpt2")
    result = evaluate.longppl(
        model, tokenizer, TEXT, lengths=[70, 90], evaluator=None if own else judge, trunc=20, block=16, alpha=0.3,
        beta=7.0, progress=False,
    )  # fmt: skip
    assert result.protocol == ("self" if own else "evaluator")
    ids = text_ids(tokenizer, 90)
    for row in result.rows:
        length = row["length"]
        full, mine = own_losses(judge, ids[:, :length]), own_losses(model, ids[:, :length])
        chosen = []
        for token in range(20, length):
            start = 20 + (token - 20) // 16 * 16  # first token of its block
            short = own_losses(judge, ids[:, start - 20 : token + 1])[-1]
            if short - full[token - 1] > 0.3 and full[token - 1] < 7.0:
                chosen.append(mine[token - 1].item())
        assert row["n"] == len(chosen) > 3
        assert row["perplexity"] == pytest.approx(math.exp(sum(chosen) / len(chosen)), rel=1e-3)
        assert row["perplexity_of_all"] == pytest.approx(math.exp(mine[19:].mean().item()), rel=1e-3)


def test_longppl_refuses(model, tokenizer):
    with pytest.raises(BadOption, match="above trunc"):
        evaluate.longppl(model, tokenizer, TEXT, lengths=64, trunc=64, progress=False)
    with pytest.raises(UnsupportedHost, match="different tokens"):
        evaluate.longppl(
            model, tokenizer, TEXT, lengths=64, trunc=32, evaluator=tiny("llama", vocab_size=300), progress=False
        )


def test_short_guard_is_the_difference_to_the_unpatched_model(model, tokenizer):
    ids = text_ids(tokenizer, 80)
    before = torch.cat([own_losses(model, ids[:, start : start + 40]) for start in (0, 40)])
    pospatch.apply(model, "linear", factor=4.0)
    after = torch.cat([own_losses(model, ids[:, start : start + 40]) for start in (0, 40)])
    (row,) = evaluate.short_guard(model, tokenizer, TEXT, lengths=40, windows=2, progress=False).rows
    change = (after - before).double()
    assert row["n"] == 78
    assert row["change"] == pytest.approx(change.mean().item(), rel=1e-3)
    assert row["error"] == pytest.approx(change.std(correction=0).item() / math.sqrt(78), rel=1e-3)
    assert row["percent"] == pytest.approx(100 * (math.exp(change.mean().item()) - 1), rel=1e-2)
    assert pospatch.inspect(model).method == "linear"
    torch.testing.assert_close(own_losses(model, ids[:, :40]), after[:39])


def test_short_guard_against_a_given_base(model, tokenizer, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    with pytest.raises(BadOption, match="no patch"):
        evaluate.short_guard(model, tokenizer, TEXT, lengths=40, progress=False)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.1)
    (row,) = evaluate.short_guard(model, tokenizer, TEXT, lengths=40, base=tmp_path, progress=False).rows
    assert row["change"] != 0
    with torch.no_grad():
        model.lm_head.weight.copy_(tiny("llama", max_position_embeddings=64).lm_head.weight)
    monkeypatch.setitem(_named.NAMED, "smollm2-135m", lambda: tmp_path)
    for base in (tmp_path, "smollm2-135m"):
        (row,) = evaluate.short_guard(model, tokenizer, TEXT, lengths=40, base=base, progress=False).rows
        assert row["change"] == 0


def test_a_patch_stands_again_after_an_error_with_what_it_learned(tokenizer):
    model = pospatch.apply(tiny("llama", max_position_embeddings=64), "t5_bias")
    learned = {name: each for name, each in model.named_parameters() if name in pospatch.inspect(model).weights}
    assert learned
    with torch.no_grad():
        for each in learned.values():
            each.normal_()
    wanted = own_losses(model, text_ids(tokenizer, 50))
    taken_off = []

    def interrupted():
        with unpatched(model):
            taken_off.append(pospatch.inspect(model).method)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert taken_off == [None]
    torch.testing.assert_close(own_losses(model, text_ids(tokenizer, 50)), wanted)


def test_generation_measures_cache_and_speed(model, tokenizer):
    result = evaluate.generation(model, tokenizer, TEXT, lengths=[32, 64], new_tokens=4, repeats=2, progress=False)
    for row in result.rows:
        # two layers of two key heads and two value heads of 8 numbers of 4 bytes; the last token is not cached
        assert row["cache_bytes"] == 2 * 2 * 2 * 8 * 4 * (row["length"] + 3)
        assert row["decode_speed"] > 0
        assert row["prompt_speed"] == pytest.approx(row["length"] / row["prompt_seconds"], rel=0.2)


def test_encoder_passkey_finds_what_is_within_the_cut(tokenizer, monkeypatch):
    """An encoder that knows every token it reads, as a bag of words, finds all names that it reads and no others."""
    module = evaluate.task_of("encoder_passkey")
    read: list[list[int]] = []
    columns: dict[str, int] = {}

    def bags(model, texts, pooling, batch, advance):
        read.append([len(text) for text in texts])
        words = [Counter(tokenizer.decode(text).replace("?", "").replace("'s", "").split()) for text in texts]
        out = torch.zeros(len(texts), 4000)
        for index, bag in enumerate(words):
            for word in bag:
                if word[0].isupper() and word.isalpha() and word not in ("The", "Here", "There", "Remember"):
                    out[index, columns.setdefault(word, len(columns))] = 1.0
        return torch.nn.functional.normalize(out, dim=-1)

    monkeypatch.setattr(module, "embed", bags)
    whole = encoder(max_position_embeddings=2048)
    more = {"lengths": [300, 1200], "queries": 20, "documents": 40, "progress": False}
    result = evaluate.encoder_passkey(whole, tokenizer, **more)
    assert [row["rate"] for row in result.rows] == [1.0, 1.0]
    assert set(read[1]) == {300}
    assert set(read[3]) == {1200}
    cut = evaluate.encoder_passkey(whole, tokenizer, cut=300, **more)
    assert cut.label.endswith("cut at 300")
    assert [row["read"] for row in cut.rows] == [300, 300]
    assert cut.rows[0]["rate"] == 1.0
    assert cut.rows[1]["rate"] < 0.6
    with pytest.raises(BadOption, match="cut=512"):
        evaluate.encoder_passkey(encoder(), tokenizer, **more)


def test_wrapping_cuts_as_a_tokenizer_does():
    from transformers import BertTokenizer

    words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word", "other"])}
    bert = BertTokenizer(vocab=words)
    wrapping = Wrapping(bert)
    ids = bert("word other word other", add_special_tokens=False)["input_ids"]
    assert wrapping.around(ids) == bert("word other word other")["input_ids"]
    cut = bert("word other word other", truncation=True, max_length=4)["input_ids"]
    assert wrapping.cut(wrapping.around(ids), 4) == cut


def test_pair_ranking(tokenizer):
    same = evaluate.pair_ranking(encoder(), tokenizer, PROSE, base=encoder(), lengths=24, pairs=40, progress=False)
    assert same.rows[0]["pearson"] == pytest.approx(1, abs=1e-6)
    assert same.rows[0]["spearman"] == pytest.approx(1, abs=1e-6)
    assert same.rows[0]["overlap"] == same.rows[0]["base_overlap"] > 0.5
    other = pospatch.apply(encoder(), "nope", allow_bidirectional=True)
    changed = evaluate.pair_ranking(other, tokenizer, PROSE, lengths=24, pairs=40, progress=False)
    assert changed.rows[0]["spearman"] < 0.999
    assert pospatch.inspect(other).method == "nope"


def test_ranks_of_equal_values_share_their_mean():
    ranks = evaluate.task_of("pair_ranking")._ranks(torch.tensor([0.5, 0.1, 0.5, 0.9]))
    assert ranks.tolist() == [1.5, 0.0, 1.5, 3.0]


def test_lengths_beyond_a_table_are_refused_before_any_forward(tokenizer, monkeypatch):
    short = tiny("gpt2", n_positions=128)
    calls = []
    monkeypatch.setattr(SlicedHead, "hidden", lambda *_: calls.append(1))
    for run in (
        lambda: evaluate.perplexity(short, tokenizer, TEXT, lengths=[32, 256], progress=False),
        lambda: evaluate.passkey(short, tokenizer, lengths=500, progress=False),
    ):
        with pytest.raises(BadOption, match="at most 128 tokens"):
            run()
    assert calls == []
    assert _limits.reach(pospatch.apply(short, "rope")) is None


GRID = {"factor": 2.0, "resize": "grid"}


@pytest.mark.parametrize(
    ("method", "given", "end"),
    [
        ("learned", {"length": 128}, 128),
        ("learned", GRID, 128),
        ("learned", {**GRID, "short": "plain"}, 128),
        ("hierarchical", {}, 128),
        ("sinusoidal", {"length": 100}, 100),
        ("grouped", {}, 128),
        ("grouped", {"group_size": 3}, 192),
        (["learned", "grouped"], {"length": 128}, 256),
        ("randomized", {"length": 32}, 64),
        ("grouped", {"group_size": None}, None),
        ("recurrent", {}, None),
        ("recurrent", {"period": 16}, None),
        (["learned", "rope", ("bipe", {"delimiters": [2]})], {}, None),
        ("nope", {}, None),
        ("rope", {}, None),
        ("alibi", {}, None),
    ],
)
def test_the_end_of_a_patched_table_is_where_the_model_stops_reading(method, given, end, tokenizer):
    short = pospatch.apply(tiny("gpt2", n_positions=64), method, **given)
    assert _limits.reach(short) == end
    own_losses(short, text_ids(tokenizer, end or 600))
    if end is None:
        return
    with pytest.raises(IndexError):
        own_losses(short, text_ids(tokenizer, end + 1))
    with pytest.raises(BadOption, match=f"at most {end} tokens"):
        evaluate.perplexity(short, tokenizer, TEXT, lengths=end + 1, progress=False)


@pytest.mark.parametrize(
    ("kind", "method", "given", "end"),
    [
        ("bert", "grouped", {}, 128),
        ("bert", "recurrent", {"factor": 3.0}, 192),  # its index buffers end
        ("roberta", "learned", {"length": 100}, 100),
        ("roberta", "recurrent", {}, 128),  # its types are looked up at rows, of which the first two are no position
        ("mpnet", "grouped", {}, 128),
        ("mpnet", "recurrent", {}, None),
    ],
)
def test_the_end_of_an_encoder_is_that_of_its_index_buffers_too(kind, method, given, end):
    torch.manual_seed(0)
    own = {"max_position_embeddings": 64} if kind == "bert" else {"max_position_embeddings": 66, "pad_token_id": 1}
    config = AutoConfig.for_model(kind, **{**COMMON, "intermediate_size": 48, **own})
    reads = pospatch.apply(AutoModel.from_config(config).eval(), method, **given)
    assert _limits.reach(reads) == end
    ids = torch.full((1, 600), 7)
    with torch.no_grad():
        reads(input_ids=ids[:, :end])
        if end is not None:
            with pytest.raises((IndexError, RuntimeError)):
                reads(input_ids=ids[:, : end + 1])


@pytest.mark.parametrize("kind", ["llama", "xglm"])  # a table of ours where there is none, and in the place of sines
def test_an_added_table_ends(kind, tokenizer):
    changes = {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48, "vocab_size": 260}
    torch.manual_seed(0)
    plain = (
        tiny("llama", max_position_embeddings=64)
        if kind == "llama"
        else AutoModelForCausalLM.from_config(
            AutoConfig.for_model("xglm", max_position_embeddings=64, **changes)
        ).eval()
    )
    assert _limits.reach(plain) is None
    longer = pospatch.apply(plain, "learned", length=96)
    assert _limits.reach(longer) == 96
    own_losses(longer, text_ids(tokenizer, 96))
    with pytest.raises(BadOption, match="beyond the table"):
        own_losses(longer, text_ids(tokenizer, 97))
    assert _limits.reach(pospatch.remove(longer)) is None


def test_lengths_beyond_memory_are_refused(model, tokenizer, monkeypatch):
    monkeypatch.setattr(_limits, "available_memory", lambda device: 50_000)
    with pytest.raises(BadOption, match=r"needs about .* GiB .* are free"):
        evaluate.perplexity(model, tokenizer, TEXT, lengths=2000, progress=False)
    evaluate.perplexity(model, tokenizer, TEXT, lengths=16, progress=False)


def test_available_memory_is_what_the_system_says():
    free = _limits.available_memory(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50


@pytest.mark.parametrize("task", sorted(NEEDS_HARNESS))
def test_harness_tasks_run_on_lm_eval_or_say_how_to_install_it(task, model, tokenizer, tmp_path):
    if not HARNESS:
        with pytest.raises(PospatchError, match=r"pip install 'pospatch\[lm-eval\]'"):
            evaluate.run(task, model, tokenizer, **options(task))
        return
    more = {}
    if task == "longbench":
        lines = [{"context": PROSE[:900], "question": "Which?", "answers": ["b"], "input": "", "length": 9}] * 2
        (tmp_path / "qasper.jsonl").write_text("\n".join(json.dumps(each) for each in lines))
        more = {"data": str(tmp_path)}
    result = evaluate.run(task, tiny("llama"), tokenizer, path=tmp_path / "out", **options(task, **more))
    assert [row["n"] for row in result.rows] == [2]
    assert 0 <= result.rows[0]["score"] <= 1
    assert result.versions["lm_eval"]


class Encoding:
    """HFLM's way of making a batch of prompts, one token a character and one before them."""

    def tok_batch_encode(self, prompts):
        return torch.zeros(len(prompts), 1 + max(map(len, prompts))), None


def test_longbench_counts_the_prompts_that_lose_their_beginning():
    module = evaluate.task_of("longbench")
    task = {"generation_kwargs": {"max_gen_toks": 512, "until": []}}
    room = module._room("gov_report", 4096, task)
    assert room == 3584
    samples = [{"arguments": [("x" * size, {})], "score": 0.5} for size in (3583, 3584, 4000, 5000)]
    assert module._figures(samples, Encoding(), room) == {"n": 4, "score": 0.5, "room": 3584, "cut": 3}
    with pytest.raises(BadOption, match=r"gov_report may generate 512 tokens.*above 512, got 512"):
        module._room("gov_report", 512, task)


@pytest.mark.skipif(not HARNESS, reason="lm-eval is not installed")
@pytest.mark.parametrize(("subtask", "new"), [("qasper", 128), ("hotpotqa", 32)])
def test_longbench_reads_what_it_says(subtask, new, tokenizer, tmp_path, monkeypatch):
    """Prompts one token above and at the room, as they reach the model, which has no more positions than are asked for."""
    from lm_eval.models.huggingface import HFLM

    own, read = HFLM._model_generate, []

    def listen(self, context, max_length, **more):
        read.append((context.shape[1], max_length))
        return own(self, context, max_length=max_length, **more)

    def measured(sizes, lengths):
        lines = [{"context": "x" * size, "input": "", "question": "", "answers": ["b"]} for size in sizes]
        (tmp_path / f"{subtask}.jsonl").write_text("\n".join(json.dumps(each) for each in lines))
        short = tiny("gpt2", n_positions=lengths)
        return evaluate.longbench(
            short, tokenizer, lengths=lengths, subtasks=subtask, data=tmp_path, progress=False
        ).rows[0]

    monkeypatch.setattr(HFLM, "_model_generate", listen)
    row = measured([1], 4000)
    (around, _), *_ = read
    assert (row["cut"], row["room"]) == (0, 4000 - new)
    read.clear()
    row = measured([50, 51, 52], around + 50 + new)
    assert row["room"] == around + 50
    assert row["cut"] == 1
    assert sorted(size for size, _ in read) == [around + 49, around + 50, around + 50]
    assert max(most for _, most in read) == around + 50 + new


def test_harness_tasks_refuse_unknown_names(model, tokenizer):
    with pytest.raises(UnknownName, match="Did you mean 'niah_single_2'"):
        evaluate.ruler(model, tokenizer, PROSE, lengths=700, subtasks=["niah_singel_2"])
    if HARNESS:
        with pytest.raises(UnknownName, match="Did you mean 'qasper'"):
            evaluate.longbench(model, tokenizer, lengths=512, subtasks=["qaspr"])
        with pytest.raises((BadOption, AssetError), match="no file"):
            evaluate.longbench(model, tokenizer, lengths=512, subtasks=["qasper"], data="/nowhere")
