"""Vision encoders."""

from pospatch.hosts._base import Host

__all__ = ["VISION"]

VISION: tuple[Host, ...] = ()
