"""GGUF: llama.cpp itself gives the same log-probabilities for every fixed spectrum; everything else is refused."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

import pospatch
from pospatch import registry
from pospatch.checkpoint._engines import llama_cpp_flags
from pospatch.checkpoint._native_form import Form
from pospatch.checkpoint.card import card
from pospatch.checkpoint.doctor import Diagnosis
from pospatch.checkpoint.doctor._gguf import read_header
from pospatch.checkpoint.llama_cpp import _export
from pospatch.checkpoint.llama_cpp._import import put_back
from pospatch.checkpoint.llama_cpp._vocabulary import LLAMA_3
from pospatch.engine._sites import find, rotations
from pospatch.engine._trial import Trial
from pospatch.errors import BadOption, CheckpointError, CheckpointWarning, PospatchError, UnsupportedHost
from pospatch.methods._base import Rotary
from tests import llama_engine, tiny
from tests.doctor_cases import gguf

WORDS = "It wasn't 12345 o'clock,\n\n  she'd(all) said:\tDÉJÀ vu <s>\r\n 7/8!"
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
SPLITTERS = {
    "gpt-2": BYTE_LEVEL,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL]),
    "llama-bpe": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}
MERGES = [
    ("1", "2"),
    ("12", "3"),
    ("3", "4"),
    ("Ġ", "s"),
    ("h", "e"),
    ("Ġs", "he"),
    ("'", "d"),
    ("(", "a"),
    ("\u010a", "\u010a"),
    ("d", ":"),
]


def tokenizer(splitter: str = "gpt-2") -> Any:
    """Bytes, a few merges that depend on how words are split, and three special tokens."""
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    whole = splitter == "llama-bpe"
    made = Tokenizer(models.BPE({token: n for n, token in enumerate(symbols)}, MERGES, ignore_merges=whole))
    made.pre_tokenizer, made.decoder = SPLITTERS[splitter], decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "</s>", "<pad>")])
    return tf.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    return tiny.spread(tiny.llama(**{"vocab_size": 300, "pad_token_id": None, **changes}))


def wanted(model: Any, ids: list[int]) -> np.ndarray:
    """Log-probability of each token after all before it."""
    with torch.no_grad():
        found = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return found[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


ASCII = [
    n for n, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet())) if "!" <= token <= "~"
]  # whole characters
IDS = [ASCII[n] for n in torch.randint(0, len(ASCII), (60,), generator=torch.Generator().manual_seed(1))]


def exportable(method: str, options: dict[str, Any]) -> bool:
    """A spectrum that is fixed, the same in all layers and at all lengths."""
    made = registry.build(method, **options)
    one_list = options.get("short_factor") == options.get("long_factor")
    return (isinstance(made, Rotary) and made.spectral and not made.dynamic and one_list) or method == "nope"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each method on the tiny llama: what llama.cpp gave and what was wanted, or the refusal."""
    folder, found, jobs = tmp_path_factory.mktemp("gguf"), {}, []
    stacks: dict[str, Any] = dict.fromkeys(registry.names())
    stacks |= {
        "yarn, wavelength": ("yarn", {"factor": 4.0, "interpolation": "wavelength"}),
        "yarn, its own amplitude": ("yarn", {"factor": 4.0, "attention_factor": 1.5}),
        "found factors": ("longrope", {"factor": 4.0, "short_factor": [1.0, 1.3, 2.9, 4.0], "long_factor": [1.0, 1.3, 2.9, 4.0]}),
        "an amplitude alone": (
            "longrope",
            {"factor": 4.0, "attention_factor": 1.5, "short_factor": [1.0] * 4, "long_factor": [1.0] * 4},
        ),
        "unpatched": ("", {}),
    }  # fmt: skip
    for name, given in stacks.items():
        model = llama()
        method, options = given or (name, {})
        if given is None:
            if Trial(model, None).reason(name) is not None:
                continue
            options = tiny.options(name, model)
        if method:
            pospatch.apply(model, method, **options)
        ids = IDS[: min(len(IDS), model.config.max_position_embeddings - 2)]
        try:
            written: Any = pospatch.export(model, folder / f"{name}.gguf", tokenizer=tokenizer())
        except UnsupportedHost as error:
            found[name] = (method, options, str(error))
            continue
        found[name] = (method, options, written, wanted(model, ids))
        jobs.append({"file": written.path, "ids": ids})
    answers = iter(llama_engine.ask(jobs, folder))
    return {name: (*item, next(answers)["logprobs"]) if len(item) == 4 else item for name, item in found.items()}


def test_every_method_is_exported_exactly_or_refused(exported: dict[str, Any]) -> None:
    plain, moved = exported["unpatched"][3], {}
    for name, (method, options, written, *rest) in exported.items():
        if isinstance(written, str):
            assert not exportable(method, options), f"{name}: a fixed spectrum was refused: {written}"
            assert "nearest" in written, name
            continue
        ours, theirs = rest
        gap = np.abs(ours - np.array(theirs)).max()
        assert gap < 1e-3, f"{name}: {gap}"
        assert written.difference < 2e-6
        moved[name] = np.abs(ours[: len(plain)] - plain[: len(ours)]).max()
    told_apart = [name for name, size in moved.items() if size > 10 * 1e-3]
    assert all(size == 0 for name, size in moved.items() if name not in told_apart), (
        moved
    )  # the same spectrum, or told apart
    assert len(told_apart) > len(moved) / 2, moved


def test_it_says_what_it_wrote(exported: dict[str, Any]) -> None:
    text = str(exported["yarn"][2])
    for words in ("llama.rope.scaling.type = yarn", "equal to the bit", "frequencies as llama.cpp computes them"):
        assert words in text
    assert "a divisor for each of 4 pairs" in str(exported["found factors"][2])
    assert "note:" not in str(exported["unpatched"][2])
    assert "note:" in str(exported["an amplitude alone"][2])


def test_the_doctor_sees_what_transformers_drops(exported: dict[str, Any]) -> None:
    for name, check in (
        ("yarn", "gguf_scaling"),
        ("an amplitude alone", "gguf_scaling"),
        ("found factors", "gguf_factors"),
    ):
        seen = pospatch.inspect(exported[name][2].path)
        assert isinstance(seen, Diagnosis)
        assert check in [item.check for item in seen.findings if item.severity == "error"]
    seen = pospatch.inspect(exported["unpatched"][2].path)
    assert isinstance(seen, Diagnosis)
    assert seen.ok


def test_what_transformers_drops_is_put_back(exported: dict[str, Any]) -> None:
    shown = 0
    for name, (_, _, written, *rest) in exported.items():
        if isinstance(written, str):
            continue
        folder, file = Path(written.path).parent, Path(written.path).name
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", CheckpointWarning)
            loaded = pospatch.from_pretrained(tf.AutoModelForCausalLM, folder, gguf_file=file, dtype=torch.float32)
        told = [item for item in said if issubclass(item.category, CheckpointWarning)]
        ids = IDS[: len(rest[0]) + 1]
        plain = tf.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
        assert np.abs(wanted(loaded, ids) - rest[0]).max() < 1e-4, name
        misread = np.abs(wanted(plain, ids) - rest[0]).max() > 1e-4
        assert bool(told) or not misread, name  # nothing is changed without a word
        shown += misread
    assert shown > 5, "transformers reads them all, so nothing was shown"


def test_the_cards_flags_give_the_base_the_same(tmp_path: Path) -> None:
    """`--rope-...` on a GGUF of the unpatched base, as the model card says it."""
    base, patched = llama(), pospatch.apply(llama(), "yarn", factor=4.0)
    written: Any = pospatch.export(base, tmp_path / "base.gguf", tokenizer=tokenizer())
    flags = llama_cpp_flags(patched.config)
    assert flags == "--ctx-size 128 --rope-freq-base 10000 --rope-scaling yarn --rope-scale 4 --yarn-orig-ctx 32"
    params = {
        "rope_freq_base": 10000.0,
        "rope_scaling_type": "LLAMA_ROPE_SCALING_TYPE_YARN",
        "rope_freq_scale": 0.25,
        "yarn_orig_ctx": 32,
    }
    (answer,) = llama_engine.ask([{"file": written.path, "ids": IDS, "params": params}], tmp_path)
    assert np.abs(wanted(patched, IDS) - np.array(answer["logprobs"])).max() < 1e-3


def test_a_theta_that_is_an_integer_is_written_as_a_float(tmp_path: Path) -> None:
    from gguf import GGUFReader, GGUFValueType

    model = llama(rope_parameters={"rope_type": "default", "rope_theta": 500000})
    pospatch.export(model, tmp_path / "model.gguf", tokenizer=tokenizer())
    assert GGUFReader(tmp_path / "model.gguf").fields["llama.rope.freq_base"].types == [GGUFValueType.FLOAT32]


def test_other_frequencies_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = _export.say(llama().config, *_export._spectrum(Form("", tf.LlamaForCausalLM, llama().config, {}, [])))
    monkeypatch.setattr(_export, "say", lambda *_: replace(said, keys={**said.keys, "rope.freq_base": 10001.0}))
    with pytest.raises(CheckpointError, match="computes other frequencies"):
        pospatch.export(llama(), tmp_path / "model.gguf", tokenizer=tokenizer())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("keys", "method"),
    [
        ({"rope.scaling.factor": 4.0}, "linear"),
        ({"rope.scale_linear": 4.0}, "linear"),
        ({"rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 1.5}, "longrope"),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 1.5}, "longrope"),
    ],
)
def test_scaling_without_a_type_is_put_back(tmp_path: Path, keys: dict[str, Any], method: str) -> None:
    """llama.cpp takes a factor without a type as linear, under an older key too; "none" never scales."""
    file = gguf(tmp_path, **keys)
    header = read_header(file)
    assert "gguf_scaling" in [item.check for item in pospatch.inspect(file).findings]  # type: ignore[attr-defined]
    model = llama()
    with pytest.warns(CheckpointWarning, match=f"{method} was applied"):
        put_back(model, header)
    rotation = rotations(find(model))[None]
    plain = 10000.0 ** (-torch.arange(4) / 4)
    assert torch.allclose(rotation.inv_freq, plain / (1.0 if header.scaling == "none" else 4.0))
    assert rotation.attention_factor == keys.get("rope.scaling.attn_factor", 1.0)


def test_a_factor_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a number above 0"):
        put_back(llama(), read_header(gguf(tmp_path, **{"rope.scaling.factor": float("nan")})))


def test_the_card_promises_a_gguf_where_export_writes_one() -> None:
    lists = {"factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    promised = {
        "ntk_by_parts": (pospatch.apply(llama(), "ntk_by_parts", factor=2.0), True),
        "dynamic": (pospatch.apply(llama(), "dynamic_ntk", factor=2.0), False),
        "two lists": (pospatch.apply(llama(), "longrope", **lists), False),
        "a bias": (pospatch.apply(llama(attention_bias=True), "ntk_by_parts", factor=2.0), False),
        "double": (pospatch.apply(llama().double(), "ntk_by_parts", factor=2.0), False),
    }
    for name, (model, wanted_there) in promised.items():
        text = card(model, "me/mine", results=[], pictures=[], licence=None, native=True)
        assert ("pospatch export" in text) == wanted_there, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    from gguf import GGUFReader

    model = pospatch.apply(llama().to(dtype), "ntk_by_parts", factor=2.0)
    written: Any = pospatch.export(model, tmp_path / "model.gguf", tokenizer=tokenizer())
    assert written.difference < 2e-6
    stored = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    kept = torch.from_numpy(np.array(stored["blk.1.ffn_up.weight"].data)).view(dtype)
    assert torch.equal(kept, model.model.layers[1].mlp.up_proj.weight.data)
    assert stored["output_norm.weight"].tensor_type.name == "F32"


def test_tied_embeddings_and_mistral(tmp_path: Path) -> None:
    tied = pospatch.apply(llama(tie_word_embeddings=True), "linear", factor=2.0)
    size = {name: getattr(tied.config, name) for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size",
            "num_attention_heads", "num_key_value_heads", "max_position_embeddings")}  # fmt: skip
    torch.manual_seed(2)
    mistral = tiny.spread(tf.MistralForCausalLM(tf.MistralConfig(**size, head_dim=16, sliding_window=None)))
    jobs = []
    for name, model in (("tied", tied), ("mistral", mistral)):
        pospatch.export(model, tmp_path / f"{name}.gguf", tokenizer=tokenizer())
        jobs.append({"file": tmp_path / f"{name}.gguf", "ids": IDS})
    for model, answer in zip((tied, mistral), llama_engine.ask(jobs, tmp_path), strict=True):
        assert np.abs(wanted(model, IDS) - np.array(answer["logprobs"])).max() < 1e-3


def test_the_vocabulary_splits_words_alike(tmp_path: Path) -> None:
    jobs, ours = [], []
    for splitter in SPLITTERS:
        pospatch.export(llama(), tmp_path / f"{splitter}.gguf", tokenizer=tokenizer(splitter), verify=False)
        jobs.append({"file": tmp_path / f"{splitter}.gguf", "texts": [WORDS, "12 34"]})
        ours.append([tokenizer(splitter)(text).input_ids for text in (WORDS, "12 34")])
    assert len({tuple(item[0]) for item in ours}) == len(SPLITTERS), "they do not differ here, so nothing was shown"
    assert [answer["tokens"] for answer in llama_engine.ask(jobs, tmp_path)] == ours


def test_it_replaces_a_file_and_no_folder(tmp_path: Path) -> None:
    """What a killed export left goes with the next one."""
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(CheckpointError, match="is a folder"):
        pospatch.export(llama(), tmp_path / "folder.gguf", tokenizer=tokenizer())
    left = tmp_path / ".x.gguf.saving-0123"
    left.mkdir()
    (left / "x.gguf").write_text("half")
    (tmp_path / "x.gguf").write_text("old")
    pospatch.export(llama(), tmp_path / "x.gguf", tokenizer=tokenizer(), verify=False)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder.gguf", "x.gguf"]
    assert (tmp_path / "x.gguf").read_bytes().startswith(b"GGUF")


def refusals() -> dict[str, tuple[Any, Any, str]]:
    biased = lambda: llama(attention_bias=True)  # noqa: E731
    lists = {"factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    odd = tokenizer()
    odd.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return {
        "gelu": (lambda: pospatch.apply(tiny.build("gpt2"), "rope"), tokenizer(), "half precision"),
        "a bias": (biased, tokenizer(), "attention_bias=True"),
        "dynamic": (lambda: pospatch.apply(llama(), "dynamic_ntk", factor=2.0), tokenizer(), "nearest"),
        "two lists": (lambda: pospatch.apply(llama(), "longrope", **lists), tokenizer(), "long_factor as both lists"),
        "a window": (lambda: tiny.build("mistral"), tokenizer(), "sliding_window=6"),
        "double": (lambda: llama().double(), tokenizer(), "convert the model first"),
        "no tokenizer": (llama, None, "give tokenizer"),
        "a tokenizer of words": (llama, odd, "no name for how"),
        "a tokenizer of bytes": (llama, tf.ByT5Tokenizer(), "no tokenizer.json"),
        "too many tokens": (lambda: llama(vocab_size=260), tokenizer(), "has 269 tokens and the model 260"),
        "own checkpoint": (lambda: pospatch.apply(llama(), "alibi"), tokenizer(), "nearest"),
    }


@pytest.mark.parametrize("name", refusals())
def test_what_is_not_exact_is_refused(tmp_path: Path, name: str) -> None:
    make, vocabulary, message = refusals()[name]
    with pytest.raises(PospatchError, match=message):
        pospatch.export(make(), tmp_path / "model.gguf", tokenizer=vocabulary)
    assert not list(tmp_path.iterdir())


def test_other_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadOption, match="one file"):
        pospatch.export(llama(), tmp_path / "model.gguf", tokenizer=tokenizer(), max_shard_size="1GB")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match="pip install"):
        pospatch.export(llama(), tmp_path / "model.gguf", tokenizer=tokenizer())


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.gguf"
    pospatch.export(llama(), file, tokenizer=tokenizer())
    before = file.read_bytes()

    def fails(*_: Any) -> float:
        raise CheckpointError("made to fail")

    monkeypatch.setattr(_export, "_read_back", fails)
    with pytest.raises(CheckpointError, match="made to fail"):
        pospatch.export(pospatch.apply(llama(), "linear", factor=2.0), file, tokenizer=tokenizer())
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert file.read_bytes() == before


def test_wrong_bytes_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = _export._stored

    def spoiled(tensor: Any) -> Any:
        array, *rest = written(tensor)
        return (
            (array * 1.01, *rest) if array.ndim == 2 and sys._getframe(1).f_code.co_name == "_write" else (array, *rest)
        )

    monkeypatch.setattr(_export, "_stored", spoiled)
    with pytest.raises(CheckpointError, match="was not written as it is"):
        pospatch.export(llama(), tmp_path / "model.gguf", tokenizer=tokenizer())
    assert not list(tmp_path.iterdir())
