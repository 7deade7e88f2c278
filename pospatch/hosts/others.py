"""What is neither text, image nor sound."""

from pospatch.hosts._base import Host

__all__ = ["OTHERS"]

OTHERS: tuple[Host, ...] = ()
