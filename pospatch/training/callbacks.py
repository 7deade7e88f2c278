"""What happens beside the optimizer: metrics.jsonl, a bar, and a signal that ends the run where it can be resumed."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import ProgressCallback, TrainerCallback

from pospatch.errors import BadOption
from pospatch.evaluate._result import write_text

__all__ = ["MetricsFile", "OnBegin", "StopOnSignal", "TokensBar"]


class MetricsFile(TrainerCallback):
    """Appends one JSON object a logged step: step, loss, perplexity, lr, grad norm, tokens seen and per second, memory, ETA."""

    def __init__(self, path: Path, tokens_per_step: int) -> None:
        self.path, self.tokens_per_step = path, tokens_per_step
        self._begun = time.monotonic()
        self._first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begun, self._first_step = time.monotonic(), state.global_step
        if state.is_world_process_zero:
            self.keep_until(state.global_step)

    def keep_until(self, step: int) -> None:
        """Drop what a resumed run will do again: lines of steps after the checkpoint.

        Raises:
            BadOption: a line that no run wrote stands among the others.
        """
        kept = [line for line, its_step in self._lines() if its_step <= step] if step else []
        write_text(self.path, "".join(line + "\n" for line in kept))

    def _lines(self) -> Iterator[tuple[str, int]]:
        """The lines and their steps; a last one that a kill or a full disk cut off is none."""
        lines = self.path.read_text(errors="replace").splitlines() if self.path.is_file() else []
        for number, line in enumerate(lines, 1):
            try:
                step = int(json.loads(line)["step"])
            except (ValueError, TypeError, KeyError) as error:
                if number == len(lines):
                    return
                raise BadOption(
                    f"{self.path}, line {number} is no JSON object with a step: got {line[:60]!r}; delete that line, or the file "
                    "if its numbers are not needed, and start the same command again"
                ) from error
            yield line, step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        wanted = any(name == "loss" or name.startswith("eval_") for name in logs or ())
        if not state.is_world_process_zero or not logs or not wanted:
            return
        done, seconds = state.global_step - self._first_step, time.monotonic() - self._begun
        line: dict[str, Any] = {"step": state.global_step, **logs}
        if "loss" in logs:
            line |= {
                "perplexity": math.exp(logs["loss"]) if logs["loss"] < 700 else None,
                "tokens": state.global_step * self.tokens_per_step,
                "tokens_per_second": round(done * self.tokens_per_step / seconds, 1) if seconds else None,
                "seconds": round(seconds, 2),
                "eta_seconds": round(seconds / done * (state.max_steps - state.global_step), 1) if done else None,
                "peak_memory_gib": _peak_memory(),
            }
        with self.path.open("a") as file:
            file.write(json.dumps({name: _finite(value) for name, value in line.items()}) + "\n")


def _finite(value: Any) -> Any:
    """JSON has no NaN: null, which a reader cannot overlook."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _peak_memory() -> float:
    """GiB: of the GPU where there is one, of the process otherwise."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**30, 2)
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 2)


class TokensBar(ProgressCallback):
    """The Trainer's bar with tokens per second; in a resumed run both rates are of what this run has done."""

    def __init__(self, tokens_per_step: int) -> None:
        super().__init__()
        self.tokens_per_step = tokens_per_step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.current_step = self._first_step = state.global_step
        self._begun = time.monotonic()
        if self.training_bar is not None:
            self.training_bar.initial = self.training_bar.n = state.global_step
            self.training_bar.refresh()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seconds = time.monotonic() - self._begun
        if self.training_bar is not None and seconds:
            rate = (state.global_step - self._first_step) * self.tokens_per_step / seconds
            self.training_bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        super().on_step_end(args, state, control, **kwargs)


class OnBegin(TrainerCallback):
    """Calls a function when the model is wrapped and loaded, before the first step."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.function()


class StopOnSignal(TrainerCallback):
    """SIGINT or SIGTERM: the step in progress ends, a checkpoint is saved, training stops. A second signal ends at once."""

    def __init__(self) -> None:
        self.caught: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._before = {number: signal.signal(number, self._catch) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.restore()

    def restore(self) -> None:
        """Put the handlers of before back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.caught = number
        self.restore()
        print(f"{signal.Signals(number).name}: saving a checkpoint after this step, then ending", flush=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.caught = self._agreed(args)
        if self.caught is not None and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
        return control

    def _agreed(self, args: Any) -> int | None:
        """One decision for all processes: the signal may have reached them during different steps."""
        if args.world_size == 1:
            return self.caught
        number = torch.tensor(self.caught or 0, device=args.device)
        torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
        return int(number) or None
