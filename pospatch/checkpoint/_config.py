"""The config of a checkpoint that only pospatch can read: the base config inside, nothing outside that another loader could use.

Without pospatch, `AutoConfig` refuses the unknown model type, and the type itself names the remedy; a concrete class such as
`LlamaForCausalLM` fails on the guard where it expects a number. With pospatch imported, every `AutoModel*` class loads it.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from pospatch.checkpoint._numbers import check_counts, check_rotary
from pospatch.checkpoint._record import methods_of
from pospatch.engine._native import FIELDS
from pospatch.errors import CheckpointError

__all__ = ["GUARD", "MODEL_TYPE", "PospatchConfig", "register", "wrap"]

MODEL_TYPE = "pospatch (pip install pospatch, then import pospatch)"
GUARD = "this checkpoint's positions were changed by pospatch: pip install pospatch, then import pospatch"
GUARDED = ("vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads")
NEVER = ("auto_map", "pospatch", "trust_remote_code", "_attn_implementation_internal")  # nothing a record may ask for


class PospatchConfig(PreTrainedConfig):
    """Reads through to the base config it carries."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from config.json; the record is validated here, before any weight is read.

        Raises:
            CheckpointError: the record or the base config cannot be used.
        """
        wants_unused = kwargs.pop("return_unused_kwargs", False)
        record: Any = config_dict.get("pospatch")
        methods_of(record)
        nested = record.get("base_config")
        if (
            not isinstance(nested, dict)
            or not isinstance(nested.get("model_type"), str)
            or nested["model_type"] == MODEL_TYPE
        ):
            raise CheckpointError(
                "the checkpoint's config.json has no usable 'pospatch.base_config'; save it again with pospatch"
            )
        nested = {name: value for name, value in nested.items() if name not in NEVER}
        check_counts(nested, "the checkpoint")
        check_rotary(nested, "the checkpoint's 'pospatch.base_config'")
        try:
            base_class = type(AutoConfig.for_model(nested["model_type"]))
            base, unused = base_class.from_dict(nested, return_unused_kwargs=True, **kwargs)
        except Exception as error:  # whatever a family's config says of values that it cannot take
            raise CheckpointError(
                f"the checkpoint's 'pospatch.base_config' is no config: {type(error).__name__}: {error!s:.300}"
            ) from error
        for name, value in (
            record.get("base") or {}
        ).items():  # shapes of the weights follow the base, not what the patch promises
            if name in FIELDS and hasattr(base, name):
                setattr(base, name, value)
        config: Any = cls()
        config.__dict__["pospatch"], config.__dict__["_base"] = record, base
        return (config, unused) if wants_unused else config

    @property
    def base(self) -> PreTrainedConfig:
        """The config of the unpatched base."""
        return vars(self)["_base"]

    def __getattr__(self, name: str) -> Any:
        base = vars(self).get("_base")
        if base is None or name.startswith("__"):
            raise AttributeError(name)
        return getattr(base, name)


def wrap(config: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a patched checkpoint from the base's own."""
    base = {name: value for name, value in config.items() if name != "pospatch"}
    outside: dict[str, Any] = {
        name: config[name] for name in ("architectures", "dtype", "transformers_version") if name in config
    }
    # the base config stands two levels down: transformers looks for a matching model type one level down and would take it
    return {
        **dict.fromkeys(GUARDED, GUARD),
        **outside,
        "model_type": MODEL_TYPE,
        "pospatch": {**record, "base_config": base},
    }


def register() -> None:
    """Teach AutoConfig and every AutoModel* class our model type."""
    AutoConfig.register(MODEL_TYPE, PospatchConfig, exist_ok=True)
    for auto_class in _auto_classes():
        auto_class.register(PospatchConfig, _loader(auto_class), exist_ok=True)


def _auto_classes() -> list[Any]:
    classes: list[Any] = [item for item in vars(modeling_auto).values() if isinstance(item, type)]
    return [item for item in classes if issubclass(item, _BaseAutoModelClass) and item._model_mapping is not None]


def _loader(auto_class: Any) -> type:
    def from_pretrained(path: Any, *args: Any, config: Any, **kwargs: Any) -> Any:
        from pospatch.checkpoint._load import load

        return load(auto_class, path, args, config, kwargs)

    return type(
        f"Pospatch{auto_class.__name__}",
        (),
        {"config_class": PospatchConfig, "from_pretrained": staticmethod(from_pretrained)},
    )


register()
