"""Records about the rows of a cache, kept on it, that follow where its rows are reordered, repeated or selected."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor

__all__ = ["keep"]

_KEPT = "_pospatch_kept"
_MOVES = ("reorder_cache", "batch_repeat_interleave", "batch_select_indices")


def keep(cache: Any, name: str, record: Tensor) -> None:
    """Keep a tensor (batch, ...) on a cache under an attribute; beams that change places take their rows along."""
    vars(cache)[name] = record
    names = vars(cache).setdefault(_KEPT, set())
    if not names:
        for move in _MOVES:
            if hasattr(cache, move):
                vars(cache)[move] = _Following(cache, move)
    names.add(name)


class _Following:
    """Stands for a method of one cache that moves rows; what is kept moves with them. Knows the cache weakly: no cycle."""

    def __init__(self, cache: Any, move: str) -> None:
        self._cache, self._move = weakref.ref(cache), move

    def __call__(self, how: Any) -> Any:
        cache: Any = self._cache()
        result = getattr(type(cache), self._move)(cache, how)
        for name in vars(cache)[_KEPT]:
            record = vars(cache)[name]
            if self._move == "batch_repeat_interleave":
                vars(cache)[name] = record.repeat_interleave(how, dim=0)
            else:
                vars(cache)[name] = record[how.to(record.device)]
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> _Following:
        return _Following(memo[id(self._cache())], self._move)

    def __reduce__(self) -> Any:
        return _Following, (self._cache(), self._move)
