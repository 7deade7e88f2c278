"""How a new encoding takes the place of the old one in training: at once, little by little, or at a step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

import pospatch
from pospatch.api import patch_of, unwrap
from pospatch.checkpoint._own import own_tensors
from pospatch.engine.embedding import EmptyTable
from pospatch.errors import BadOption, UnsupportedHost
from pospatch.training import tuning
from pospatch.training.fade import Fade
from pospatch.training.options import TuneArguments

__all__ = ["FadeSchedule", "SwapAtStep", "schedule", "warm_start"]


class FadeSchedule(TrainerCallback):
    """Turns a fade from step to step; outside of steps it stands at the end."""

    def __init__(self, fade: Fade, steps: int) -> None:
        self.fade, self.steps = fade, steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.fade.share = min(1.0, (state.global_step + 1) / self.steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.fade.share = 1.0

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.fade.remove()


class SwapAtStep(TrainerCallback):
    """Applies a stack after so many steps of training without it, as DroPE drops the rotary encoding.

    Tensors that the stack brings, as QK norm's gains, begin there. The optimizer and the schedule of the rate know them from the
    start (`announce`), so that checkpoints on both sides of the step have one shape; what has no gradient yet is passed by.

    check: called when the patch has been applied in training.
    brings: names of the stack's own tensors.
    tensors: their values in a checkpoint that was made with the patch on, to be loaded as soon as it stands.

    Raises:
        PospatchError: the stack does not fit.
    """

    def __init__(
        self, model: Any, stack: list[Any], step: int, say: Callable[[str], None], check: Callable[[], None]
    ) -> None:
        self.model, self.stack, self.step, self.say, self.check = model, stack, step, say, check
        self.tensors: Path | None = None
        self._announced: dict[str, torch.nn.Parameter] = {}
        with self.standing():  # what cannot work is said now
            self.brings = sorted(own_tensors(model))

    @contextmanager
    def standing(self) -> Iterator[None]:
        """The patch on the model for a while."""
        self._apply()
        try:
            yield
        finally:
            pospatch.remove(self.model)

    def _apply(self) -> None:
        with torch.random.fork_rng(devices=[]):  # a resumed run does this at another time
            pospatch.apply(self.model, self.stack)

    def announce(self, optimizer: Any, decaying: Callable[[Any], Collection[str]], decay: float) -> None:
        """Give an optimizer the tensors that the patch will bring, as groups of their own.

        decaying: gives the names of a model's parameters that weight decay is meant for.
        """
        if not self.brings:
            return
        with self.standing():
            self._announced, names = own_tensors(self.model), decaying(self.model)
            decayed = {id(value) for name, value in self.model.named_parameters() if name in names}
        for share, wanted in ((decay, True), (0.0, False)):
            group = [value for value in self._announced.values() if (id(value) in decayed) == wanted]
            if group:
                optimizer.add_param_group({"params": group, "weight_decay": share})

    def _hand_over(self, optimizer: Any) -> None:
        """The tensors that stand take the places, and the state, of those that were announced."""
        standing = own_tensors(self.model)
        new = {id(old): standing[name] for name, old in self._announced.items()}
        for group in optimizer.param_groups if new else ():
            group["params"] = [new.get(id(value), value) for value in group["params"]]
        for old in self._announced.values():
            if old in optimizer.state:
                optimizer.state[new[id(old)]] = optimizer.state.pop(old)
        self._announced = {}
        if self.tensors is not None:
            tuning.load_tensors(self.model, self.tensors)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.step >= state.max_steps:
            raise BadOption(
                f"graft_steps {self.step}: the run ends after {state.max_steps} steps, before the patch is applied"
            )
        self._apply_when_due(state, kwargs["optimizer"])  # a run resumed at its end takes no step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._apply_when_due(state, kwargs["optimizer"])

    def _apply_when_due(self, state: Any, optimizer: Any) -> None:
        if state.global_step >= self.step and patch_of(self.model) is None:
            self._apply()
            self._hand_over(optimizer)
            self.say(f"after step {state.global_step} the patch stands")
            self.check()


def schedule(
    arguments: TuneArguments,
    model: Any,
    stack: list[Any],
    say: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> list[TrainerCallback]:
    """The callbacks that carry a graft out, none for `swap`.

    Raises:
        UnsupportedHost: this patch cannot be grafted so.
        BadOption: no patch.
    """
    if arguments.graft == "swap":
        return []
    if not stack:
        raise BadOption(f"graft: {arguments.graft} needs a patch, and there is none")
    if arguments.graft == "fade":
        return [FadeSchedule(Fade(model), arguments.graft_steps)]
    return [SwapAtStep(model, stack, arguments.graft_steps, say, check)]


@torch.no_grad()
def warm_start(model: Any) -> None:
    """Give the token embeddings the mean row of the table that the patch dropped, so that layers see the mean they know.

    Where the head is tied to the embeddings, all logits of a token move alike, which no softmax sees.

    Raises:
        UnsupportedHost: no table was dropped, or its rows do not add up with token embeddings as they are.
    """
    inner, patch = unwrap(model), patch_of(model)
    tables = patch.found.tables if patch is not None and patch.found is not None else []
    dropped = [table for table in tables if isinstance(table.parent._modules.get(table.name), EmptyTable)]
    if not dropped:
        raise UnsupportedHost("warm_start: this patch drops no table of positions")
    embeddings, table = inner.get_input_embeddings(), dropped[0]
    mean = table.matrix()[table.offset :].mean(dim=0)
    if len(dropped) > 1 or mean.shape[0] != embeddings.weight.shape[1]:
        raise UnsupportedHost(
            f"warm_start: {len(dropped)} tables of width {mean.shape[0]} and token embeddings of width "
            f"{embeddings.weight.shape[1]}; it takes one table of the embeddings' width"
        )
    embeddings.weight += mean / float(getattr(embeddings, "embed_scale", None) or 1.0)
