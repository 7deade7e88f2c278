"""transformers' Trainer, whose checkpoints hold the patch's own tensors and record too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import Trainer

from pospatch.api import patch_of, unwrap
from pospatch.training import tuning

__all__ = ["PatchTrainer", "save_patch"]

TENSORS = "trained_patch.safetensors"


class PatchTrainer(Trainer):
    """Saves and loads the patch's own tensors beside an adapter or a model."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and not self.is_fsdp_enabled:
            save_patch(self.model, Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint) / TENSORS
        if path.is_file() and not self.is_fsdp_enabled:  # whose own checkpoint holds every weight
            tuning.load_tensors(self.model if model is None else model, path)


def save_patch(model: Any, folder: Path) -> None:
    """The patch's tensors by their names in the unwrapped model, and its record: an adapter holds neither."""
    from safetensors.torch import save_file

    own = {name: value.detach().cpu().contiguous() for name, value in tuning.own_tensors(model).items()}
    if own:
        save_file(own, folder / TENSORS, metadata={"format": "pt"})
    if patch_of(model) is not None:
        (folder / "pospatch.json").write_text(json.dumps(unwrap(model).config.pospatch, indent=2) + "\n")
