"""Relative methods inside models: every attention form, cache, mask and packing gives what one plain forward gives."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import pospatch
from pospatch.attention import blockwise as blockwise_module
from pospatch.engine import score
from pospatch.errors import CheckpointError
from pospatch.methods._base import Bias, Contextual, Fold
from pospatch.registry import method_class, names
from tests import tiny

_CLASSES = {name: method_class(name) for name in names()}
BIAS = [name for name, cls in _CLASSES.items() if issubclass(cls, Bias)]
MINE = [*BIAS, *(n for n, cls in _CLASSES.items() if issubclass(cls, Contextual) and cls.family == "relative")]
TWO_SIDED = [name for name in MINE if not _CLASSES[name].causal_only]
FOLD = [name for name in BIAS if issubclass(_CLASSES[name], Fold)]
PLACES = [("llama", name) for name in MINE] + [("bert", name) for name in TWO_SIDED]
PLACES += [(host, name) for host in ("gpt2", "mistral", "t5") for name in ("alibi", "t5_bias")]
OWN = [("gemma2", "alibi"), ("gemma2", "t5_bias"), ("gpt_oss", "alibi"), ("gpt_oss", "kerple_log")]  # eager alone


pytestmark = pytest.mark.usefixtures("uncompiled")


def patched(host: str, name: str, attention: str | None = None, **options: Any) -> Any:
    """A tiny model with the method on it, learned tensors away from their start."""
    model = pospatch.apply(tiny.build(host, attention=attention), name, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for path, value in model.named_parameters():
            if ".pospatch." in path:
                value.add_(0.5 * torch.randn(value.shape, generator=generator))
    return model


def close(got: Tensor, wanted: Tensor) -> None:
    assert got.shape == wanted.shape
    assert got.isfinite().all()
    assert (got - wanted).abs().max() < 2e-5 * max(1.0, float(wanted.std()))


def padded(model: Any) -> tuple[Tensor, Tensor]:
    """Two rows of tokens, the first with 6 pads before it, and their mask."""
    tokens = tiny.ids(2, 20)
    mask = torch.ones_like(tokens)
    mask[0, :6] = 0
    return tokens.masked_fill(mask == 0, model.config.pad_token_id), mask


# one forward, however it is computed --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "name"), PLACES)
@torch.no_grad()
def test_eager_and_sdpa_and_blocks_agree(monkeypatch: pytest.MonkeyPatch, host: str, name: str) -> None:
    """With and without left padding; and with so small a block that every bias is made in several."""
    model = patched(host, name, "eager")
    tokens, mask = padded(model)
    wanted = tiny.logits(model, tokens), tiny.logits(model, tokens, attention_mask=mask)[mask.bool()]
    nothing = tiny.logits(patched(host, "nope", allow_bidirectional=True), tokens)
    assert (wanted[0] - nothing).abs().max() > 1e-2
    model.set_attn_implementation("sdpa")
    close(tiny.logits(model, tokens), wanted[0])
    close(tiny.logits(model, tokens, attention_mask=mask)[mask.bool()], wanted[1])
    monkeypatch.setattr(score, "takes_kernel", lambda *args: False)  # as on a GPU
    close(tiny.logits(model, tokens), wanted[0])
    monkeypatch.setattr(blockwise_module, "BLOCK_SCORES", 2 * 4 * 20 * 7)
    monkeypatch.setattr(score, "_may_fold", lambda *args: False)
    close(tiny.logits(model, tokens), wanted[0])
    close(tiny.logits(model, tokens, attention_mask=mask)[mask.bool()], wanted[1])


@pytest.mark.parametrize(("host", "name"), [("llama", name) for name in MINE] + [("gemma2", "alibi")])
@torch.no_grad()
def test_flex_attention_agrees(host: str, name: str) -> None:
    model = patched(host, name, "eager")
    tokens, mask = padded(model)
    wanted = tiny.logits(model, tokens, attention_mask=mask)[mask.bool()]
    model.set_attn_implementation("flex_attention")
    close(tiny.logits(model, tokens, attention_mask=mask)[mask.bool()], wanted)


@pytest.mark.parametrize("form", ["folded or whole", "blocks"])
@pytest.mark.parametrize("name", [name for name in MINE if name not in FOLD])
def test_gradients_are_those_of_eager(monkeypatch: pytest.MonkeyPatch, name: str, form: str) -> None:
    model = patched("llama", name, "eager", **({"zero_init": False} if name in ("fire", "log_cpb") else {}))
    tokens, mask = padded(model)
    learned = {path: value for path, value in model.named_parameters() if ".pospatch." in path}

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        tiny.logits(model, tokens, attention_mask=mask)[mask.bool()].square().mean().backward()
        return {path: value.grad.clone() for path, value in model.named_parameters() if value.grad is not None}

    wanted = gradients()
    assert all(path in wanted and wanted[path].abs().max() > 0 for path in learned)
    model.set_attn_implementation("sdpa")
    if form == "blocks":
        monkeypatch.setattr(blockwise_module, "BLOCK_SCORES", 2 * 4 * 20 * 7)
        monkeypatch.setattr(blockwise_module, "KEPT_SCORES", 1)
    for path, got in gradients().items():
        assert (got - wanted[path]).abs().max() < 1e-4 * max(1.0, float(wanted[path].abs().max())), path


class _Recorder:
    """Stands as the host's function and remembers what it was given."""

    def __call__(self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        self.width, self.kwargs = query.shape[-1], kwargs
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None


@pytest.mark.parametrize("name", FOLD)
def test_columns_never_meet_a_softcap_a_sink_or_another_bias(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A softcap squashes what is in q.k, and a sink is compared with it: there the bias is handed over as a bias, whole."""
    from pospatch.engine._state import Call

    monkeypatch.setattr(score, "takes_kernel", lambda *args: False)  # as on a GPU
    model = patched("llama", name)
    module = model.model.layers[0].self_attn
    q, k = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
    where = torch.arange(6)[None]
    call = Call(state=module.pospatch, positions=where, true=where)

    def given(base: str = "sdpa", mask: Any = None, **kwargs: Any) -> _Recorder:
        function = _Recorder()
        score.attend(module, q, k, k, mask, call, function, base, {"scaling": 0.3, **kwargs})
        return function

    assert given().width > 8
    monkeypatch.setattr(blockwise_module, "BLOCK_SCORES", 1)
    module.pospatch.drop_bias = False
    prefix = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    assert given(mask=prefix).width > 8
    for kwargs in ({"softcap": 1.5}, {"s_aux": torch.zeros(4)}, {"position_bias": torch.ones(1, 4, 6, 6)}):
        seen = given(**kwargs)
        assert seen.width == 8
        extra = kwargs.get("position_bias", 0.0)
        wanted = module.pospatch.score.bias(call.positions, call.positions, {}, module.pospatch.geometry) + extra
        assert torch.equal(seen.kwargs["position_bias"], wanted)
        assert all(key in seen.kwargs for key in kwargs if key != "position_bias")


def test_softcapped_and_sinking_hosts_refuse_sdpa_themselves() -> None:
    for host in ("gemma2", "gpt_oss"):
        model = patched(host, "alibi", "eager")
        with pytest.raises(ValueError, match="scaled_dot_product_attention"):
            model.set_attn_implementation("sdpa")
        assert tiny.logits(model, tiny.ids(1, 6)).isfinite().all()


# cache --------------------------------------------------------------------------------------------------------------------


def chunked(model: Any, tokens: Tensor, sizes: list[int], **whole: Any) -> Tensor:
    """Logits of one forward made in pieces over a cache; `whole` holds keywords (batch, length), cut as the pieces are."""
    found, cache, start = [], None, 0
    for size in sizes:
        part = {key: value[:, start : start + size] for key, value in whole.items() if key != "attention_mask"}
        if "attention_mask" in whole:
            part["attention_mask"] = whole["attention_mask"][:, : start + size]
        output = model(input_ids=tokens[:, start : start + size], past_key_values=cache, use_cache=True, **part)
        found.append(output.logits)
        cache, start = output.past_key_values, start + size
    return torch.cat(found, dim=1)


@pytest.mark.parametrize(
    ("host", "name"), [("llama", n) for n in MINE] + [("mistral", "alibi"), ("gpt2", "fire"), *OWN]
)
@torch.no_grad()
def test_steps_and_chunks_equal_one_forward(host: str, name: str) -> None:
    model, tokens = patched(host, name), tiny.ids(2, 20)
    wanted = tiny.logits(model, tokens)
    for sizes in ([1] * 20, [7, 3, 1, 9], [19, 1]):
        close(chunked(model, tokens, sizes), wanted)


@pytest.mark.parametrize("name", MINE)
@torch.no_grad()
def test_irregular_positions_in_cached_chunks(name: str) -> None:
    """A rule that takes the past for contiguous is wrong by more than 1 here."""
    model, tokens = patched("llama", name), tiny.ids(1, 16)
    where = torch.tensor([[0, 1, 2, 3, 9, 10, 11, 30, 31, 32, 33, 34, 50, 51, 52, 70]])
    ones = torch.ones_like(tokens)  # a mask, so that the gaps are not taken for documents
    wanted = tiny.logits(model, tokens, position_ids=where, attention_mask=ones)
    for sizes in ([4, 3, 5, 4], [1] * 16, [6, 10]):
        close(chunked(model, tokens, sizes, position_ids=where, attention_mask=ones), wanted)
    plain = tiny.logits(model, tokens)
    assert (plain - wanted).abs().max() > 1e-2


@pytest.mark.parametrize("name", MINE)
@torch.no_grad()
def test_left_padded_generation_equals_each_row_alone(name: str) -> None:
    model = patched("llama", name)
    tokens, mask = padded(model)
    together = model.generate(tokens, attention_mask=mask, max_new_tokens=5, do_sample=False)[:, 20:]
    for row, start in ((0, 6), (1, 0)):
        alone = model.generate(tokens[row : row + 1, start:], max_new_tokens=5, do_sample=False)
        assert torch.equal(alone[0, 20 - start :], together[row])


# masks and packing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MINE)
@torch.no_grad()
def test_masks_given_whole_are_honoured(name: str, attention: str) -> None:
    """Boolean and float, (batch, 1, query, key): the same as the mask of tokens, and a prefix that sees ahead."""
    model = patched("llama", name, attention)
    tokens, mask = padded(model)
    where = (mask.cumsum(dim=1) - 1).clamp(min=0)
    wanted = tiny.logits(model, tokens, attention_mask=mask, position_ids=where)[mask.bool()]
    allowed = mask.bool()[:, None, None, :] & torch.ones(20, 20, dtype=torch.bool).tril()
    for given in (allowed, torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)):
        close(tiny.logits(model, tokens, attention_mask=given, position_ids=where)[mask.bool()], wanted)
    prefix = allowed.clone()
    prefix[1, :, :8, :8] = True
    ahead = tiny.logits(model, tokens, attention_mask=prefix, position_ids=where)[mask.bool()]
    assert (ahead - wanted).abs().max() > 1e-2
    model.set_attn_implementation("sdpa" if attention == "eager" else "eager")
    close(tiny.logits(model, tokens, attention_mask=prefix, position_ids=where)[mask.bool()], ahead)


@pytest.mark.parametrize("name", MINE)
@torch.no_grad()
def test_packed_documents_are_separate_documents(name: str) -> None:
    model, tokens = patched("llama", name), tiny.ids(1, 20)
    where = torch.cat((torch.arange(9), torch.arange(11)))[None]
    packed = tiny.logits(model, tokens, position_ids=where, use_cache=False)
    close(packed[:, :9], tiny.logits(model, tokens[:, :9]))
    close(packed[:, 9:], tiny.logits(model, tokens[:, 9:]))


@pytest.mark.parametrize("name", FOLD)
@torch.no_grad()
def test_positions_that_start_again_without_a_mask_between(name: str) -> None:
    """With a mask of ones transformers keeps no documents apart: a query then sees keys of larger positions."""
    model, tokens = patched("llama", name, "sdpa"), tiny.ids(1, 20)
    where = torch.cat((torch.arange(9), torch.arange(11)))[None]
    folded = tiny.logits(model, tokens, position_ids=where, attention_mask=torch.ones_like(tokens))
    model.set_attn_implementation("eager")
    close(folded, tiny.logits(model, tokens, position_ids=where, attention_mask=torch.ones_like(tokens)))


# hosts with a bias of their own ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_t5_with_its_own_table_in_every_layer_is_t5(attention: str) -> None:
    model, tokens = tiny.build("t5", attention=attention), tiny.ids(2, 40)
    wanted = tiny.logits(model, tokens)
    tables = {
        stack: getattr(model, stack).block[0].layer[0].SelfAttention.relative_attention_bias.weight.clone()
        for stack in ("encoder", "decoder")
    }
    pospatch.apply(model, "t5_bias")
    assert not torch.allclose(tiny.logits(model, tokens), wanted, atol=1e-2)
    for path, value in model.named_parameters():
        if path.endswith(".pospatch.score__table"):
            value.copy_(tables[path.partition(".")[0]])
    close(tiny.logits(model, tokens), wanted)
    for stack in ("encoder", "decoder"):  # the native tables are out of use, and frozen
        native = getattr(model, stack).block[0].layer[0].SelfAttention.relative_attention_bias.weight
        native.add_(1.0)
        assert not native.requires_grad
    close(tiny.logits(model, tokens), wanted)


@torch.no_grad()
def test_layers_that_are_not_chosen_keep_their_native_bias() -> None:
    model, tokens = tiny.build("t5"), tiny.ids(1, 12)
    pospatch.apply(model, "alibi", layers=[1])
    native = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    before = tiny.logits(model, tokens)
    assert native.requires_grad
    native.mul_(-1.0)
    assert (tiny.logits(model, tokens) - before).abs().max() > 1e-2


# old BERT checkpoints -------------------------------------------------------------------------------------------------------


def _old_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    """Self-attention of BERT with relative keys as transformers 4 had it, over the module's own table."""
    table, kind = module.old_table.to(query.dtype), module.old_kind
    length = query.shape[2]
    rows = torch.arange(length)[:, None] - torch.arange(length)[None] + (table.shape[0] + 1) // 2 - 1
    scores = query @ key.transpose(2, 3) + torch.einsum("bhld,lrd->bhlr", query, table[rows])
    if kind == "relative_key_query":
        scores = scores + torch.einsum("bhrd,lrd->bhlr", key, table[rows])
    scores = scores / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return (scores.softmax(dim=-1) @ value).transpose(1, 2), None


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
@torch.no_grad()
def test_old_bert_checkpoints_are_usable_again(tmp_path: Path, kind: str) -> None:
    from transformers import AttentionInterface, BertForMaskedLM
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register("old_relative_keys", _old_attention)
    AttentionMaskInterface.register("old_relative_keys", sdpa_mask)
    model = tiny.build("bert")
    model.config.position_embedding_type = kind
    tables = {
        f"bert.encoder.layer.{i}.attention.self.distance_embedding.weight": torch.randn(2 * tiny.LENGTH - 1, 8)
        for i in range(2)
    }
    model.save_pretrained(tmp_path)
    save_file(
        {**load_file(tmp_path / "model.safetensors"), **tables},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )

    tokens, mask = padded(model)
    old = BertForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager")
    absolute = tiny.logits(old, tokens, attention_mask=mask)
    old.bert.embeddings.position_embeddings.weight.zero_()
    for i, layer in enumerate(old.bert.encoder.layer):
        layer.attention.self.old_table, layer.attention.self.old_kind = list(tables.values())[i], kind
    old.set_attn_implementation("old_relative_keys")
    wanted = tiny.logits(old, tokens, attention_mask=mask)

    new = BertForMaskedLM.from_pretrained(tmp_path)
    close(
        tiny.logits(new, tokens, attention_mask=mask)[mask.bool()], absolute[mask.bool()]
    )  # what transformers 5 makes of it
    pospatch.load_distance_embeddings(new, tmp_path)
    got = tiny.logits(new, tokens, attention_mask=mask)
    close(got[mask.bool()], wanted[mask.bool()])
    assert (got - absolute)[mask.bool()].abs().max() > 1e-2
    bare = {
        name.removeprefix("bert."): value for name, value in tables.items()
    }  # as a base model's state dict names them
    again = pospatch.load_distance_embeddings(tiny.build("bert"), bare, kind)
    assert sum("pospatch" in name for name in again.state_dict()) == 2
    new.save_pretrained(tmp_path / "new")
    loaded = pospatch.from_pretrained(BertForMaskedLM, tmp_path / "new")
    assert torch.equal(tiny.logits(loaded, tokens, attention_mask=mask), got)


def test_distance_embeddings_that_do_not_fit_raise(tmp_path: Path) -> None:
    def tables(*shapes: tuple[int, int]) -> dict[str, Tensor]:
        return {
            f"encoder.layer.{i}.attention.self.distance_embedding.weight": torch.zeros(s) for i, s in enumerate(shapes)
        }

    model = tiny.build("bert")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for source, message in (
        ({}, "got 0 tensors"),
        (tables((63, 8), (61, 8)), r"\[61, 63\] rows"),
        (tables((62, 8), (62, 8)), r"\[62\] rows"),
        (tables((63, 8)), "layer.1.*none"),
        (tables((63, 8), (63, 8), (63, 8)), "layer.2"),
        (tables((63, 4), (63, 4)), r"\(63, 8\)"),
        (tmp_path, "no safetensors"),
    ):
        with pytest.raises(CheckpointError, match=message):
            pospatch.load_distance_embeddings(model, source, "relative_key")
        assert pospatch.inspect(model).method is None
        assert {name: value.shape for name, value in model.state_dict().items()} == {
            n: v.shape for n, v in before.items()
        }
    with pytest.raises(CheckpointError, match="position_embedding_type=None"):
        pospatch.load_distance_embeddings(model, tables((63, 8), (63, 8)))
