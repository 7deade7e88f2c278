"""A cell as a function that does its work once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pospatch.bench._cell import ENCODERS, SHAPES, Cell
from pospatch.errors import BadOption, suggest

__all__ = ["build", "config_of", "make_model", "patched"]

Work = Callable[[], object]


def build(cell: Cell, longest: int | None = None) -> Work:
    """The work of a cell, with everything it needs already made; `longest` where a table must reach further."""
    if cell.level == "attention":
        from pospatch.bench._layer import layer_work

        return layer_work(cell)
    return _model_work(cell, _model(cell, max(cell.length, longest or 0)))


def config_of(cell: Cell) -> Any:
    """The config of a cell's decoder, without its weights."""
    if cell.model in SHAPES:
        with torch.device("meta"):
            return make_model(cell.model, cell.layers, 16, cell.dtype).config
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(_real(cell.model, cell.layers)).get_text_config(decoder=True)


def make_model(name: str, layers: int | None, length: int, dtype: str) -> Any:
    """A model of a named shape with random weights, its table long enough for `length`; or a real one."""
    import transformers

    import pospatch

    kind = getattr(torch, dtype)
    if name not in SHAPES:
        return pospatch.from_pretrained(transformers.AutoModelForCausalLM, _real(name, layers), dtype=kind)
    config = getattr(transformers, SHAPES[name][0])(**SHAPES[name][1])
    if layers is not None:
        config.num_hidden_layers = layers
    if not hasattr(config, "rope_parameters"):  # a table must reach; a rotary model stays trained as long as it is
        config.max_position_embeddings = max(config.max_position_embeddings, length + 8)
    for option in ("attn_pdrop", "resid_pdrop", "embd_pdrop"):
        if hasattr(config, option):
            setattr(config, option, 0.0)
    torch.manual_seed(0)
    auto = transformers.AutoModel if name in ENCODERS else transformers.AutoModelForCausalLM
    return auto.from_config(config, dtype=kind)


def _real(name: str, layers: int | None) -> Any:
    """Where a model that is no shape comes from."""
    from pospatch import assets

    if "/" not in name and name != "smollm2-135m":
        known = ", ".join((*SHAPES, "smollm2-135m"))
        raise BadOption(f"bench: no shape {name!r}.{suggest(name, SHAPES)} Give {known}, a folder or a repository")
    if layers is not None:
        raise BadOption(f"bench: layers={layers} goes with a named shape, and {name} is a real model")
    return assets.model(name)


def patched(cell: Cell, length: int) -> Any:
    """The model of a cell with its method, where it has one."""
    model = make_model(cell.model, cell.layers, length, cell.dtype).to(cell.device)
    if cell.method is not None and cell.work != "patch":
        _apply(model, cell)
    return model


def _model(cell: Cell, length: int) -> Any:
    if cell.peer is not None:
        from pospatch.bench._peers import PEERS

        return PEERS[cell.peer].model(cell, length)
    model = patched(cell, length)
    if cell.form == "reference":
        model.set_attn_implementation("eager")
    return model.train() if cell.work == "train" else model.eval()


def _model_work(cell: Cell, model: Any) -> Work:
    if cell.work == "patch":
        from pospatch import remove

        return lambda: remove(_apply(model, cell))
    torch.manual_seed(1)
    ids = torch.randint(5, model.config.vocab_size, (cell.batch, cell.length), device=cell.device)
    if cell.work == "train":
        return lambda: _train(model, ids)
    if cell.work == "decode":
        return _decoding(cell, model, ids)

    asked = {} if cell.model in ENCODERS else {"use_cache": False, "logits_to_keep": 1}

    @torch.no_grad()
    def prefill() -> None:
        model(input_ids=ids, **asked)

    return prefill


def _apply(model: Any, cell: Cell) -> Any:
    import pospatch

    assert cell.method is not None  # what is plain has nothing to apply
    return pospatch.apply(model, cell.method.split("+"), **cell.options)


def _train(model: Any, ids: torch.Tensor) -> None:
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    model.zero_grad(set_to_none=True)


def _decoding(cell: Cell, model: Any, ids: torch.Tensor) -> Work:
    """One token after a cache of `length` keys: read in chunks once, cut back after each step."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        for start in range(0, cell.length, 1024):
            model(input_ids=ids[:, start : start + 1024], past_key_values=cache, logits_to_keep=1)
    token = ids[:, :1]

    @torch.no_grad()
    def step() -> None:
        model(input_ids=token, past_key_values=cache)
        cache.crop(-1)

    return step
