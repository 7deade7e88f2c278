"""`save_pretrained` of a patched model whose result has no native form."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from torch import Tensor

from pospatch.checkpoint._config import wrap

__all__ = ["TENSORS", "arm", "disarm", "is_patch_tensor", "publish", "tables"]

TENSORS = "pospatch.safetensors"


def arm(model: Any) -> None:
    """Make the model's ordinary `save_pretrained` write the patch; a native result needs nothing but its config."""
    from pospatch.checkpoint._peft import arm_adapters, watch

    disarm(model)
    arm_adapters(model)
    watch(model)
    if not model.config.pospatch["native"]:
        vars(model)["save_pretrained"] = Saver(model)


def disarm(model: Any) -> None:
    """Give the class's own `save_pretrained` back."""
    from pospatch.checkpoint._peft import unwatch

    unwatch(model)
    vars(model).pop("save_pretrained", None)


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
    """Stands as the `save_pretrained` of one patched model; knows it weakly, so that the model is freed when dropped."""

    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)

    def __deepcopy__(self, memo: dict[int, Any]) -> Saver:
        return Saver(memo[id(self._model())])

    def __reduce__(self) -> Any:
        return Saver, (self._model(),)

    def __call__(
        self,
        save_directory: str | os.PathLike[str],
        *,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> Any:
        model: Any = self._model()
        state = model.state_dict() if state_dict is None else state_dict
        old = tables(model)
        own = {name: value for name, value in state.items() if is_patch_tensor(name) or name in old}
        own_buffers = _short(model)  # some families save them, and the base is loaded with its own length
        base = {
            name: old[name].detach().to(value.dtype) if name in old else own_buffers.get(name, value)
            for name, value in state.items()
            if name in old or name not in own
        }
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        token = {"token": kwargs["token"]} if kwargs.get("token") is not None else {}
        repo = kwargs.pop("repo_id", target.name)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=target) as folder:
            type(model).save_pretrained(model, folder, state_dict=base, is_main_process=is_main_process, **kwargs)
            if not is_main_process:
                return None
            _finish(Path(folder), model, own)
            publish(Path(folder), target)
        return model.push_to_hub(repo, **token) if push_to_hub else None


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


def publish(folder: Path, target: Path) -> None:
    """Move the finished files in, the config last: a reader finds the old config or the new one."""
    new = sorted(folder.iterdir(), key=lambda path: path.name == "config.json")
    names = {path.name for path in new}
    for stale in target.glob("*.safetensors"):
        if stale.name not in names and stale.name.startswith(("model", "pospatch")):
            stale.unlink()
    index = target / "model.safetensors.index.json"
    if index.exists() and index.name not in names:
        index.unlink()
    for path in new:
        shutil.move(str(path), target / path.name) if path.is_dir() else os.replace(path, target / path.name)
