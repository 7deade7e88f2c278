import math

from tests.oracles._rotary import standing

VARIANTS = [{}, {"factor": 12.0, "b": 0.625}]
REFERENCE = [
    ({"head_dim": 128}, {"factor": 12.0}, "mask_0", ".8959968"),
    ({"head_dim": 128}, {"factor": 12.0}, "mask_63", ".083333333"),
]


def oracle(method, geometry, length=None):
    frequencies, amplitude = standing(geometry)
    a = math.log(method.factor) / len(frequencies) ** method.b
    return [w * math.exp(-a * (i + 1) ** method.b) for i, w in enumerate(frequencies)], amplitude
