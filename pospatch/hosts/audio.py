"""Speech and sound."""

from pospatch.hosts._base import Host

__all__ = ["AUDIO"]

AUDIO: tuple[Host, ...] = ()
