"""Where positions live in each family of transformers: data only. Families of the same wiring share a row."""

from pospatch.hosts._base import Host
from pospatch.hosts.decoders import DECODERS
from pospatch.hosts.encoder_decoders import ENCODER_DECODERS
from pospatch.hosts.encoders import ENCODERS

__all__ = ["HOSTS", "Host", "host_of"]

HOSTS: tuple[Host, ...] = (*DECODERS, *ENCODERS, *ENCODER_DECODERS)
_BY_FAMILY = {family: host for host in HOSTS for family in host.families}


def host_of(family: str) -> Host | None:
    """The row of a family by transformers' `model_type`, or None where there is none."""
    return _BY_FAMILY.get(family)
