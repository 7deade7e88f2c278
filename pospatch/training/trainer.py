"""transformers' Trainer, whose checkpoints hold the patch's own tensors and record too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import Trainer

from pospatch.api import patch_of, unwrap
from pospatch.checkpoint._own import save_own
from pospatch.training import tuning
from pospatch.training.graft import SwapAtStep
from pospatch.training.lengths import Lengths

__all__ = ["PatchTrainer", "save_patch"]

TENSORS, RECORD = "trained_patch.safetensors", "pospatch.json"


class PatchTrainer(Trainer):
    """Saves and loads the patch's own tensors beside an adapter or a model, and cuts sequences shorter.

    lengths: what the sequences of a step are cut into.
    swap: what applies a patch at a step; the optimizer knows that patch's tensors from the start.
    """

    lengths: Lengths = Lengths()
    swap: SwapAtStep | None = None

    @property
    def sharded(self) -> bool:
        """True where processes hold parts of the weights, which only a gathered state has whole."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        if self.state.global_step >= self.state.max_steps:  # resumed at its end: the Trainer would take one step more
            self.control.should_training_stop = True
            return [], None
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        length = self.lengths.at(self.state.global_step)
        if length is None:
            return batches, items
        batches = [self.lengths.cut(batch, length) for batch in batches]
        return batches, self._get_num_items_in_batch(batches, device)

    def create_optimizer(self, model: Any = None) -> Any:
        new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if new and self.swap is not None:
            self.swap.announce(optimizer, self.get_decay_parameter_names, self.args.weight_decay)
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and not self.sharded:  # whose state has the patch's tensors among the others
            save_patch(self.model, Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        path = Path(resume_from_checkpoint) / TENSORS
        if self.swap is not None and path.with_name(RECORD).is_file():  # it was made with the patch on
            self.swap.tensors = path if path.is_file() else None  # which is applied when training begins
            with self.swap.standing():
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if path.is_file() and not self.sharded:  # whose own checkpoint holds every weight
            tuning.load_tensors(self.model if model is None else model, path)


def save_patch(model: Any, folder: Path) -> None:
    """The patch's tensors by their names in the unwrapped model, and its record: an adapter holds neither."""
    save_own(model, folder / TENSORS)
    if patch_of(model) is not None:
        (folder / RECORD).write_text(json.dumps(unwrap(model).config.pospatch, indent=2) + "\n")
