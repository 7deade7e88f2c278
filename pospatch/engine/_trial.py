"""Which methods would fit one model, without changing it."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from pospatch import registry
from pospatch.engine._fit import check
from pospatch.engine._geometry import geometries
from pospatch.engine._parts import choose
from pospatch.engine._patch import Patch, merge
from pospatch.engine._plan import Plan
from pospatch.engine._sites import find
from pospatch.engine._survey import survey
from pospatch.errors import PospatchError
from pospatch.methods._base import Method

__all__ = ["Trial"]


class Trial:
    """Asks of many methods whether they would fit one model, with one survey and without changing it."""

    def __init__(self, whole: Any, patch: Patch | None, part: str | None = None) -> None:
        self.model, half = choose(whole, patch.part if patch is not None else part)
        model = self.model
        self.stack = patch.stack if patch is not None else []
        if patch is not None:
            assert patch.found is not None
            self.sites, self.layers = patch.found, patch.layers
        else:
            self.sites = find(model, half)
            self.layers = geometries(model, self.sites, survey(model, self.sites))

    def example(self, cls: type[Method]) -> dict[str, Any]:
        """Options with which a method can be tried here; required ones are 2 where the method does not say otherwise."""
        required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
        return cls.example(dict.fromkeys(required, 2), next(iter(self.layers.values())))

    def reason(self, name: str, options: dict[str, Any] | None = None) -> str | None:
        """Why the method cannot be applied, with its example options where none are given, or None where it can."""
        cls = registry.method_class(name)
        try:
            method = cls.from_options(self.example(cls) if options is None else options)
            plan = Plan(self.model, self.sites, merge(self.stack, [method]), self.layers)
            check(plan)
            plan.rehearse()
        except PospatchError as error:
            return str(error)
        return None
