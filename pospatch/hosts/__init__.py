"""Where positions live in each family of transformers: data only. Families of the same wiring share a row."""

from pospatch.hosts._base import Host, Refusal
from pospatch.hosts.audio import AUDIO
from pospatch.hosts.decoders import DECODERS
from pospatch.hosts.detected import DETECTED
from pospatch.hosts.encoder_decoders import ENCODER_DECODERS
from pospatch.hosts.encoders import ENCODERS
from pospatch.hosts.others import OTHERS
from pospatch.hosts.refusals import REFUSALS
from pospatch.hosts.vision import VISION

__all__ = ["DETECTED", "HOSTS", "REFUSALS", "Host", "Refusal", "host_of", "refusal_of"]

HOSTS: tuple[Host, ...] = (*DECODERS, *ENCODERS, *ENCODER_DECODERS, *VISION, *AUDIO, *OTHERS)
_BY_FAMILY = {family: host for host in HOSTS for family in host.families}
_REFUSED = {family: refusal for refusal in REFUSALS for family in refusal.families}


def host_of(family: str) -> Host | None:
    """The row of a family by transformers' `model_type`, or None where there is none."""
    return _BY_FAMILY.get(family)


def refusal_of(family: str) -> Refusal | None:
    """Why a family cannot be reached, or None."""
    return _REFUSED.get(family)
