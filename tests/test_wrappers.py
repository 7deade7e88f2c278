"""Around a patched model: task heads, peft before and after, quantized projections, dispatch and offload, compile and export."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model
from torch import Tensor

import pospatch
from tests import tiny

METHODS = [("alibi", {}), ("rope", {"rope_theta": 500.0}), ("t5_bias", {})]
HOSTS = ["llama", "gpt2"]
pairs = pytest.mark.parametrize(
    ("host", "method", "options"), [(host, *method) for host in HOSTS for method in METHODS], ids=lambda v: str(v)
)


def lora(model: Any) -> Any:
    """The model wrapped, with adapters that do something."""
    names = ["c_attn"] if model.config.model_type == "gpt2" else ["q_proj", "k_proj"]
    torch.manual_seed(1)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=names, init_lora_weights=False))
    return wrapped.eval()


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pairs
def test_lora_before_after_and_merged(host: str, method: str, options: dict[str, Any]) -> None:
    ids = tiny.ids()
    before = lora(tiny.build(host))
    plain = before(input_ids=ids).logits
    pospatch.apply(before, method, **options)
    after = lora(pospatch.apply(tiny.build(host), method, **options))
    first, second = before(input_ids=ids).logits, after(input_ids=ids).logits
    close(first, second)
    assert (first - plain).abs().max() > 1e-2
    merged = after.merge_and_unload()
    close(merged(input_ids=ids).logits, first)
    pospatch.remove(before)
    assert torch.equal(before(input_ids=ids).logits, plain)


@pairs
def test_quantized_projections(host: str, method: str, options: dict[str, Any]) -> None:
    """Dynamic int8: q, k and v come from quantized linear layers, on gpt2 (Conv1D) the head alone is quantized."""
    kinds = {torch.nn.Linear}
    ids = tiny.ids()
    model = tiny.build(host)
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), kinds, dtype=torch.qint8)
    native = quantized(input_ids=ids).logits
    pospatch.apply(quantized, method, **options)
    patched = quantized(input_ids=ids).logits
    full = pospatch.apply(model, method, **options)(input_ids=ids).logits
    assert (patched - full).abs().mean() < 0.1 * full.std()
    pospatch.remove(quantized)
    assert torch.equal(quantized(input_ids=ids).logits, native)


@pairs
@pytest.mark.parametrize("first", ["patch", "offload"])
def test_cpu_offload(host: str, method: str, options: dict[str, Any], first: str) -> None:
    """accelerate hooks every module's forward on the instance; the patch must not be bypassed."""
    from accelerate import cpu_offload

    ids = tiny.ids()
    wanted = pospatch.apply(tiny.build(host), method, **options)(input_ids=ids).logits
    model = tiny.build(host)
    steps = {
        "patch": lambda: pospatch.apply(model, method, **options),
        "offload": lambda: cpu_offload(model, execution_device=torch.device("cpu")),
    }
    for step in sorted(steps, key=lambda name: name != first):
        steps[step]()
    close(model(input_ids=ids).logits, wanted)


@pairs
def test_disk_offload(host: str, method: str, options: dict[str, Any], tmp_path: Any) -> None:
    from accelerate import disk_offload

    ids = tiny.ids()
    wanted = pospatch.apply(tiny.build(host), method, **options)(input_ids=ids).logits
    model = pospatch.apply(tiny.build(host), method, **options)
    disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    close(model(input_ids=ids).logits, wanted)


@pairs
def test_compiled_whole(host: str, method: str, options: dict[str, Any]) -> None:
    """One graph, and the numbers of the uncompiled model."""
    torch._dynamo.reset()
    ids = tiny.ids()
    model = pospatch.apply(tiny.build(host), method, **options)
    wanted = model(input_ids=ids, use_cache=False).logits
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    close(compiled(input_ids=ids, use_cache=False).logits, wanted)


@pairs
def test_exported(host: str, method: str, options: dict[str, Any]) -> None:
    ids = tiny.ids()
    model = pospatch.apply(tiny.build(host), method, **options)
    wanted = model(input_ids=ids, use_cache=False).logits
    program = torch.export.export(model, (), {"input_ids": ids, "use_cache": False}, strict=False)
    close(program.module()(input_ids=ids, use_cache=False).logits, wanted)


HEADS = [
    (tf.LlamaForSequenceClassification, tf.LlamaConfig, tiny._ROTARY),
    (tf.LlamaForTokenClassification, tf.LlamaConfig, tiny._ROTARY),
    (tf.LlamaModel, tf.LlamaConfig, tiny._ROTARY),
    (tf.BertForQuestionAnswering, tf.BertConfig, tiny._BERT),
    (tf.BertForSequenceClassification, tf.BertConfig, tiny._BERT),
    (tf.BertModel, tf.BertConfig, tiny._BERT),
]


@pytest.mark.parametrize(("head", "config", "values"), HEADS, ids=[head.__name__ for head, _, _ in HEADS])
def test_task_heads_and_base_models(head: type, config: type, values: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = head(config(**values)).eval()
    ids = tiny.ids()
    native = model(input_ids=ids)[0]
    pospatch.apply(model, "alibi")
    assert (model(input_ids=ids)[0] - native).abs().max() > 1e-5
    pospatch.remove(model)
    assert torch.equal(model(input_ids=ids)[0], native)
