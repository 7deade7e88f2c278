"""Families that cannot be reached, each with its reason."""

from pospatch.hosts._base import Refusal

__all__ = ["REFUSALS"]

REFUSALS: tuple[Refusal, ...] = ()
