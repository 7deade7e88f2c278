"""Where the result is something transformers expresses itself, the config says so, and any tool loads it."""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from pospatch.engine._hushed import hushed
from pospatch.engine._sites import stack_of
from pospatch.engine._tables import Table
from pospatch.engine._view import real
from pospatch.methods._base import Bands, Embedding, Index, Rotary

if TYPE_CHECKING:
    from pospatch.engine._patch import Patch
    from pospatch.engine._plan import Plan
    from pospatch.engine._undo import Undo

__all__ = ["FIELDS", "SPECTRAL", "base_fields", "restore_base", "same_spectrum", "write"]

SPECTRAL = (  # parameters of one rope_type, gone with it
    "rope_type",
    "factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "short_factor",
    "long_factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)
ROWS = {  # config fields that count the rows of a stack's table, first match
    "encoder": ("max_source_positions", "max_position_embeddings"),
    "decoder": ("max_target_positions", "max_position_embeddings"),
    "model": ("max_ep_len", "max_position_embeddings", "max_source_positions", "max_target_positions"),
}
FIELDS = ("rope_parameters", *dict.fromkeys(name for names in ROWS.values() for name in names))


def base_fields(model: Any) -> dict[str, Any]:
    """The config's own positional fields before the patch, kept in the record so that `remove` works after a reload."""
    config = model.config.get_text_config()
    return {name: copy.deepcopy(getattr(config, name)) for name in FIELDS if getattr(config, name, None) is not None}


def write(model: Any, patch: Patch, plan: Plan) -> bool:
    """Write lengths and rotary parameters into the model's own configs; True where they say everything."""
    inside = {id(real(vars(module).get("config"))) for module in model.modules()}
    configs = [config for _, config in patch.configs if id(config) in inside]
    table = plan.slots.get("embedding")
    index = plan.slots.get("positions")
    if isinstance(index, Index) and not index.training_only:
        _lengthen(configs, patch, plan)
        return False
    acting = set(plan.slots) - {"positions"}  # what only acts in training leaves nothing to say
    if isinstance(table, Embedding) and plan.sites.tables:
        for held in plan.sites.tables:
            _set_rows(configs, stack_of(held.path, plan.paired), held, plan.sites.host.counts_offset)
        plain = not any(table.reading(geometry) or table.weights(geometry) for geometry in plan.base.values())
        return plain and acting == {"embedding"} and _reads_back(plan)
    _lengthen(configs, patch, plan)
    top = plan.top
    if not acting:
        return True
    if not isinstance(top, Rotary) or not plan.sites.rotary or plan.partial or acting - {"rotation", "scaling"}:
        return False
    if top.layers not in (None, "all"):
        return False
    before = [copy.deepcopy(getattr(config, "rope_parameters", None)) for config in configs]
    if _write_rope(configs, plan, top) and _reads_back(plan):
        return True
    for config, parameters in zip(configs, before, strict=True):
        if parameters is not None:
            config.rope_parameters = parameters
    return False


def _reads_back(plan: Plan) -> bool:
    """True where transformers takes the config as it will be saved, and builds tables of these very rows from it.

    Some families refuse every rope_type but one, others size a table by a field that is no length of text.
    """
    config = real(plan.whole.config)
    shapes = _shapes_again(type(plan.whole), type(config), config.to_dict())
    if shapes is None or not plan.sites.tables:
        return shapes is not None
    held = {id(table.weight) for table in plan.sites.tables}
    tables = {name: value.shape for name, value in plan.whole.state_dict(keep_vars=True).items() if id(value) in held}
    return all(shapes.get(name, shape) == shape for name, shape in tables.items())


def _shapes_again(family: type, kind: type, fields: dict[str, Any]) -> dict[str, torch.Size] | None:
    """Shapes of the tensors of a model made from a config's fields, or None where the family refuses them.

    Making hundreds of modules takes longer than the rest of `apply`, so the same fields are made into a model once.
    """
    try:
        written = json.dumps(fields)
    except (TypeError, ValueError):  # no file could hold it, so there is nothing to know it again by
        return _made(family, kind, fields)
    return _made_once(family, kind, written)


@lru_cache(maxsize=32)
def _made_once(family: type, kind: type, written: str) -> dict[str, torch.Size] | None:
    return _made(family, kind, json.loads(written))


def _made(family: Any, kind: Any, fields: dict[str, Any]) -> dict[str, torch.Size] | None:
    try:
        with hushed(), torch.device("meta"):
            again = family(kind.from_dict(fields))
    except Exception:  # noqa: BLE001  whatever the family raises, it would raise again when it is loaded
        return None
    return {name: value.shape for name, value in again.state_dict().items()}


def _lengthen(configs: list[Any], patch: Patch, plan: Plan) -> None:
    """Promise in the config what the methods reach: evaluation tools cut inputs at this length."""
    top, index = plan.top, plan.slots.get("positions")
    reach = [method for method in (top, plan.slots.get("score")) if isinstance(method, Rotary | Bands)]
    length = max((method.target_length(g) or 0 for method in reach for g in plan.layers.values()), default=0)
    if isinstance(index, Index):
        length = max(length, *(index.target_length(plan.reached(path)) or 0 for path in plan.layers))
        if plan.sites.tables and plan.sites.host.counts_offset:
            length += plan.sites.tables[0].offset
    if length > (patch.trained_length or 0) and not (isinstance(top, Rotary) and _length_is_the_trained_one(top, plan)):
        _set_length(configs, length)


def _length_is_the_trained_one(top: Rotary, plan: Plan) -> bool:
    """True for transformers' "dynamic", which reads the trained length from max_position_embeddings itself."""
    native = top.rope_parameters(next(iter(plan.layers.values())))
    return native is not None and native["rope_type"] == "dynamic"


def _set_rows(configs: list[Any], stack: str, table: Table, counts_offset: bool) -> None:
    """The length of a table where a config of the stack that reads it says it."""
    counted = table.rows + (table.offset if counts_offset else 0)
    for config in configs:
        name = next((name for name in ROWS[stack] if isinstance(getattr(config, name, None), int)), None)
        if name is not None:
            setattr(config, name, counted)


def _set_length(configs: list[Any], length: int) -> None:
    for config in configs:
        if hasattr(config, "max_position_embeddings"):
            config.max_position_embeddings = length


def _write_rope(configs: list[Any], plan: Plan, top: Rotary) -> bool:
    """Set rope_parameters where transformers computes the very same frequencies from them."""
    written: dict[str | None, dict[str, Any]] = {}
    for path, geometry in plan.layers.items():
        label = plan.label(path, geometry)
        if label in written or not plan.scales(top, label):
            continue
        source = plan.base[path] if top is plan.slots.get("rotation") else geometry
        native = top.rope_parameters(source)
        if native is None:
            return False
        written[label] = native
        if not same_spectrum(configs, label, native, top.frequencies(source)):
            return False
    for config in configs:
        if getattr(config, "rope_parameters", None):
            config.rope_parameters = _merged(config.rope_parameters, written)
    return True


def _merged(old: dict[str, Any], written: dict[str | None, dict[str, Any]]) -> dict[str, Any]:
    if None in written:
        return {**_others(old), **written[None]}
    merged = copy.deepcopy(old)
    for label, native in written.items():
        assert label is not None
        merged[label] = {**_others(old[label]), **native}
    return merged


def _others(old: dict[str, Any]) -> dict[str, Any]:
    """What a family keeps among its rotary parameters beside those of one rope_type: theta, sections, scalings of its own."""
    own = {"original_max_position_embeddings"} if "llama_4_scaling_beta" in old else set()
    return {name: value for name, value in old.items() if name in own or name not in SPECTRAL}


def same_spectrum(
    configs: list[Any], label: str | None, native: dict[str, Any], ours: tuple[torch.Tensor, float]
) -> bool:
    """True where transformers computes `ours`, (inv_freq, amplitude), to the bit from these rope_parameters."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    function = ROPE_INIT_FUNCTIONS.get(native["rope_type"])
    if function is None:
        return native["rope_type"] == "default" and _is_plain(native["rope_theta"], *ours)
    config = next((copy.deepcopy(item) for item in configs if getattr(item, "rope_parameters", None)), None)
    if config is None:
        return False
    config.rope_parameters = _merged(config.rope_parameters, {label: native})
    try:
        with torch.device("cpu"):
            inv_freq, amplitude = function(config, **({} if label is None else {"layer_type": label}))
    except (RuntimeError, AttributeError, KeyError, TypeError):  # transformers' formula does not fit this config
        return False
    return (
        inv_freq.shape == ours[0].shape
        and torch.equal(inv_freq.cpu(), ours[0].cpu())
        and abs(amplitude - ours[1]) < 1e-12
    )


def _is_plain(theta: float, inv_freq: torch.Tensor, amplitude: float) -> bool:
    dim = 2 * inv_freq.shape[-1]
    plain = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.int64, device="cpu").float() / dim))
    return torch.equal(plain, inv_freq.cpu()) and amplitude == 1.0


def restore_base(whole: Any, base: dict[str, Any], part: str | None, undo: Undo) -> None:
    """Bring a model that was loaded with a native patch back to its base: config fields of its own, rotary modules rebuilt."""
    from pospatch.engine._config import own_configs
    from pospatch.engine._parts import choose
    from pospatch.engine._sites import find

    model, half = choose(whole, part)
    sites = find(model, half)
    configs = own_configs(whole, undo)
    inside = {id(real(vars(module).get("config"))) for module in model.modules()}
    for _, config in configs:
        vars(config).pop("pospatch", None)
        if id(config) not in inside:
            continue
        for name, value in base.items():
            if name in FIELDS and hasattr(config, name):
                setattr(config, name, copy.deepcopy(value))
    for path, module in sites.rotary.items():
        parent, _, name = path.rpartition(".")
        device = next(iter(module._buffers.values())).device  # type: ignore[union-attr]
        with torch.device(device):
            rebuilt = type(module)(config=module.config)
        undo.set_module(model.get_submodule(parent), name, rebuilt)
