"""`save_pretrained` of a patched model."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from pospatch.checkpoint._config import wrap
from pospatch.checkpoint._publish import replacing
from pospatch.errors import UnsupportedHost

__all__ = ["SHIM", "TENSORS", "Saver", "arm", "disarm", "is_patch_tensor", "parts_of_a_model", "tables", "write"]

TENSORS = "pospatch.safetensors"
HUB = ("private", "revision", "commit_message", "commit_description", "create_pr", "tags")  # options of an upload
SHIM = "modeling_pospatch.py"  # written by `save_remote` alone


def arm(model: Any, wrapper: Any = None) -> None:
    """Make the model's ordinary `save_pretrained` write the patch too and replace an older checkpoint as a whole, and its
    `load_adapter` know the patch.
    """
    from pospatch.checkpoint._peft_beside import Loader
    from pospatch.checkpoint._peft_save import arm_adapters, arm_wrapper, watch

    disarm(model)
    arm_adapters(model)
    arm_wrapper(wrapper)
    watch(model)
    vars(model).update(save_pretrained=Saver(model), load_adapter=Loader(model))


def disarm(model: Any) -> None:
    """Give the class's own `save_pretrained` and `load_adapter` back."""
    from pospatch.checkpoint._peft_save import unwatch

    unwatch(model)
    for name in ("save_pretrained", "load_adapter"):
        vars(model).pop(name, None)


def is_patch_tensor(name: str) -> bool:
    """True for the name of a learned tensor of a patch in a state dict."""
    return ".pospatch." in name or ".pospatch_table." in name or name.startswith(("pospatch.", "pospatch_table."))


def tables(model: Any) -> dict[str, Tensor]:
    """The host's own tables that a longer one stands for, by name: the base keeps them, the patch has the new ones."""
    from pospatch.api import patch_of

    patch = patch_of(model)
    return dict(patch.replaced) if patch is not None else {}


def _short(model: Any) -> dict[str, Tensor]:
    """Buffers that count the host's positions, as the base has them where a patch made them longer, by name."""
    from pospatch.api import patch_of

    patch = patch_of(model)
    owners = {id(module): path for path, module in model.named_modules()}
    found: dict[str, Tensor] = {}
    for kind, owner, *rest in patch.undo.steps if patch is not None else ():
        if kind == "buffer" and id(owner) in owners:
            found.setdefault(f"{owners[id(owner)]}.{rest[0]}".lstrip("."), rest[1])  # the first step has the host's own
    return found


class Saver:
    """Stands as the `save_pretrained` of one patched model, and holds it: apply(load(), ...).save_pretrained(path) has no other.

    A model of transformers is a reference cycle without this one too.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(
        self,
        save_directory: str | os.PathLike[str],
        *,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> Any:
        model = self._model
        repo = kwargs.pop("repo_id", Path(save_directory).name)
        if kwargs.get("distributed_checkpoint"):
            return self._every_rank(save_directory, state_dict, push_to_hub, is_main_process, kwargs)
        if not model.should_save_on_this_rank(is_main_process):
            with tempfile.TemporaryDirectory() as nowhere:  # takes part in gathering the weights, writes nothing
                type(model).save_pretrained(model, nowhere, state_dict=state_dict, is_main_process=False, **kwargs)
            return None
        hub = {name: kwargs.pop(name) for name in HUB if name in kwargs} if push_to_hub else {}
        with replacing(save_directory, stale=_replaced(model, kwargs.get("variant"))) as draft:
            write(model, draft, state_dict, kwargs)
        return self._push(repo, {"state_dict": state_dict, **kwargs}, hub) if push_to_hub else None

    def _push(self, repo: str, how: dict[str, Any], hub: dict[str, Any]) -> Any:
        """Let transformers upload what was saved; it saves once more, by `max_shard_size` alone where nobody adds the rest."""
        model, shards = self._model, how.pop("max_shard_size", "50GB")
        token = {"token": how["token"]} if how.get("token") is not None else {}
        vars(model)["save_pretrained"] = partial(self, **how)
        try:
            return model.push_to_hub(repo, max_shard_size=shards, **hub, **token)
        finally:
            vars(model)["save_pretrained"] = self

    def _every_rank(self, folder: Any, state: Any, push: bool, main: bool, kwargs: dict[str, Any]) -> Any:
        """All ranks write into one folder at once, so it cannot be replaced as a whole."""
        model = self._model
        if not model.config.pospatch["native"]:
            raise UnsupportedHost(
                f"distributed_checkpoint=True writes the state of {type(model).__name__} as transformers knows it, without the "
                "patch; leave it out, the weights are gathered then"
            )
        return type(model).save_pretrained(
            model, folder, state_dict=state, push_to_hub=push, is_main_process=main, **kwargs
        )


def parts_of_a_model(variant: str | None = None) -> Callable[[str], bool]:
    """Which names in a folder belong to a model's checkpoint of one variant, and go when it is replaced."""
    kind = "" if variant is None else re.escape(f".{variant}")
    weights = re.compile(rf"model{kind}(-\d{{5}}-of-\d{{5}})?\.safetensors|model\.safetensors\.index{kind}\.json")
    always = {TENSORS, SHIM}
    return lambda name: name in always or weights.fullmatch(name) is not None


def _replaced(model: Any, variant: str | None) -> Callable[[str], bool]:
    """The same for what this model's class writes now: an adapter alone leaves the base beside it as it is."""
    from pospatch.checkpoint._peft_save import is_part

    return is_part if getattr(model, "_hf_peft_config_loaded", False) else parts_of_a_model(variant)


def write(model: Any, folder: Path, state_dict: dict[str, Tensor] | None, kwargs: dict[str, Any]) -> None:
    """The files of the checkpoint: the base as its class writes it, the patch's own tensors and the record beside it."""
    native = model.config.pospatch["native"] or getattr(model, "_hf_peft_config_loaded", False)
    if native:  # or an adapter alone, whose own config carries the patch
        model.state_dict()  # lets adapters of peft be found, which is left to this call
        type(model).save_pretrained(model, folder, state_dict=state_dict, **kwargs)
        return
    state = model.state_dict() if state_dict is None else state_dict
    old = tables(model)
    own = {name: value for name, value in state.items() if is_patch_tensor(name) or name in old}
    own_buffers = _short(model)  # some families save them, and the base is loaded with its own length
    base = {
        name: old[name].detach().to(value.dtype) if name in old else own_buffers.get(name, value)
        for name, value in state.items()
        if name in old or name not in own
    }
    type(model).save_pretrained(model, folder, state_dict=base, **kwargs)
    _finish(folder, model, own)


def _finish(folder: Path, model: Any, own: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    if own:
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in own.items()},
            folder / TENSORS,
            metadata={"format": "pt"},
        )
    path = folder / "config.json"
    config = json.loads(path.read_text())
    record = {**config["pospatch"], "tensors": sorted(own)}
    path.write_text(json.dumps(wrap(config, record), indent=2) + "\n")
