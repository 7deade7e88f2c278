"""Loading in every way that large models need: shards, meta, device maps, offload, tied weights, dtypes; never stray memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import pospatch
from pospatch import registry
from pospatch.engine.rotation import FrequencyModule
from pospatch.errors import UnsupportedHost
from tests import cells, tiny
from tests.test_checkpoint import AUTO, patched, stir, tokens, vit

CASES = [
    ("llama", "yarn"),
    ("llama", "t5_bias"),
    ("llama", "rope"),
    ("gpt2", "rope"),
    ("gpt2", "t5_bias"),
    ("gpt2", "learned"),
    ("bert", "rope"),
    ("bert", "alibi"),
]
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "device_map": {"device_map": "cpu"},
    "device_map of parts": {"device_map": {"": "cpu"}},
    "eager": {"attn_implementation": "eager"},
    "float32": {"dtype": torch.float32},
    "as saved": {"dtype": "auto"},
}


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that nobody wrote is NaN."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("host", "method"), CASES)
def test_every_way_of_loading_from_shards(tmp_path: Path, host: str, method: str) -> None:
    assert torch.empty(4).isnan().all()
    model, _ = patched(host, method)
    ids = tokens(model)
    with torch.no_grad():
        wanted = tiny.logits(model, ids)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    for way, options in WAYS.items():
        for load in (
            getattr(tf, AUTO[host]).from_pretrained,
            lambda p, **o: pospatch.from_pretrained(type(model), p, **o),
        ):
            loaded = load(tmp_path, **options)
            with torch.no_grad():
                got = tiny.logits(loaded, ids)
            if way == "eager":
                assert loaded.config._attn_implementation == "eager"
                assert (got - wanted).abs().max() < 1e-5 * wanted.std() * 10
            else:
                assert torch.equal(got, wanted), way
            for name, value in [*loaded.named_parameters(), *loaded.named_buffers()]:
                assert value.isfinite().all(), name


@pytest.mark.slow
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("method", registry.names())
def test_every_method_loads_without_stray_memory(tmp_path: Path, method: str) -> None:
    """On the first host that takes it: from shards, with a device map, with a layer on disk, in half precision."""
    bases = {"vit": vit, **{host: partial(tiny.build, host) for host in AUTO}}
    host, model = next(((host, made) for host in AUTO if (made := patched(host, method)[0]) is not None), ("vit", None))
    if model is None:
        model = vit()
        pospatch.apply(model, method, **tiny.options(method, model))
        stir(model)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    load = partial(pospatch.from_pretrained, type(model), tmp_path)
    with torch.no_grad():
        wanted = answer(model)
    layer = next(name for name, _ in model.named_modules() if name.endswith((".layers.1", ".h.1", ".layer.1")))
    ways: dict[str, dict[str, Any]] = {
        "as it is": {},
        "device map": {"device_map": "cpu"},
        "a layer on disk": {
            "device_map": device_map(bases[host](), layer),
            "offload_folder": str(tmp_path / "off"),
        },
        "half": {"dtype": torch.bfloat16},
    }
    for way, options in ways.items():
        loaded = load(**options)
        for name, value in [*loaded.named_parameters(), *loaded.named_buffers()]:
            assert value.is_meta or value.isfinite().all(), (way, name)
        with torch.no_grad():
            assert torch.equal(answer(loaded), answer(like(load(), loaded)) if "half" in way else wanted), way
        assert any(value.is_meta for value in loaded.parameters()) == (way == "a layer on disk")


def like(model: Any, other: Any) -> Any:
    """The model with the dtypes of another: what a load rounds, and nothing else (`model.to` rounds a host's frequencies too)."""
    dtypes = {name: value.dtype for name, value in (*other.named_parameters(), *other.named_buffers())}
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        value.data = value.data.to(dtypes[name])
    return model


def answer(model: Any) -> torch.Tensor:
    if isinstance(model, tf.ViTForImageClassification):
        pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        return model(pixel_values=pixels.to(model.dtype)).logits
    return tiny.logits(model, tokens(model))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("host", "method"), CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loaded_in_half_precision_is_the_model_cast(tmp_path: Path, host: str, method: str, dtype: torch.dtype) -> None:
    """Weights are rounded, frequencies are not: as if the patched model had been cast."""
    model, _ = patched(host, method)
    ids = tokens(model)
    model.save_pretrained(tmp_path)
    loaded = getattr(tf, AUTO[host]).from_pretrained(tmp_path, dtype=dtype)
    assert {value.dtype for value in loaded.parameters()} == {dtype}
    for module in loaded.modules():
        if isinstance(module, FrequencyModule):
            assert {value.dtype for name, value in module.host.named_buffers() if "inv_freq" in name} == {torch.float32}
    cast = pospatch.from_pretrained(type(model), tmp_path).to(dtype)
    with torch.no_grad():
        got, wanted = tiny.logits(loaded, ids).float(), tiny.logits(cast, ids).float()
    assert got.isfinite().all()
    assert torch.equal(got, wanted)


@pytest.mark.parametrize(("host", "method"), CASES)
def test_tied_weights_stay_tied(tmp_path: Path, host: str, method: str) -> None:
    model, _ = patched(host, method)
    model.save_pretrained(tmp_path)
    loaded = getattr(tf, AUTO[host]).from_pretrained(tmp_path)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) == tied
    assert tied == (host != "llama")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("host", "method"), CASES)
def test_offloaded_to_disk(tmp_path: Path, host: str, method: str) -> None:
    """Half of the layers stay on disk and come in when they are called."""
    from accelerate import dispatch_model

    model, _ = patched(host, method)
    ids = tokens(model)
    with torch.no_grad():
        wanted = tiny.logits(model, ids)
    away = next(name for name, _ in model.named_modules() if name.endswith((".layers.1", ".h.1", ".layer.1")))
    mapped = device_map(model, away)
    model = dispatch_model(model, mapped, main_device="cpu", offload_dir=str(tmp_path / "off"), force_hooks=True)
    with torch.no_grad():
        assert (tiny.logits(model, ids) - wanted).abs().max() <= 1e-6 * wanted.std()


def device_map(model: Any, away: str) -> dict[str, str]:
    """One block on disk, every other module that owns something on the CPU."""
    found = {away: "disk"}
    for name, module in model.named_modules():
        own = [*module._parameters.values(), *module._buffers.values()]
        if any(value is not None for value in own) and name != away and not name.startswith(f"{away}."):
            found[name] = "cpu"
    return found


@pytest.mark.parametrize("host", AUTO)
@pytest.mark.parametrize("method", ["rope", "t5_bias"])
def test_a_skeleton_without_memory_is_refused(host: str, method: str) -> None:
    with torch.device("meta"):
        skeleton = type(tiny.build(host))(tiny.build(host).config).eval()
    before = [(name, type(module), sorted(vars(module))) for name, module in skeleton.named_modules()]
    with pytest.raises(UnsupportedHost, match="no memory yet"):
        pospatch.apply(skeleton, method)
    assert [(name, type(module), sorted(vars(module))) for name, module in skeleton.named_modules()] == before


@pytest.mark.parametrize("method", ["yarn", "rope", "t5_bias"])
@pytest.mark.parametrize("host", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("concrete", [True, False])
def test_fields_of_the_config_may_be_given(tmp_path: Path, host: str, method: str, concrete: bool) -> None:
    """As for transformers' own from_pretrained: what is no option of loading is a field of the config."""
    if not cells.fits(host, method):
        assert method == "yarn"  # these hosts have no rotary encoding to scale
        return
    model = cells.patched(host, method)
    model.save_pretrained(tmp_path)
    head = tf.AutoModelForSequenceClassification
    head = tf.AutoModelForSequenceClassification._model_mapping[type(tiny.build(host).config)] if concrete else head
    given: dict[str, Any] = {
        "num_labels": 7,
        "use_cache": False,
        "dtype": torch.bfloat16,
        "attn_implementation": "eager",
    }
    loaded = pospatch.from_pretrained(tmp_path, auto_class=head, **given)
    assert (loaded.config.num_labels, loaded.config.use_cache) == (7, False)
    assert loaded.dtype == torch.bfloat16
    assert loaded.config._attn_implementation == "eager"
    assert [m["method"] for m in loaded.config.pospatch["stack"]] == [
        m["method"] for m in model.config.pospatch["stack"]
    ]
