import math

from tests.oracles._rotary import standing

BATTERY = {"fraction": 1.0}  # acts within the few tokens of the battery
VARIANTS = [{}, {"clip": "hard"}, {"fraction": 0.0}, {"fraction": 1.0}]
REFERENCE = [
    ({"head_dim": 128}, {}, "mask_43", "1.0"),
    ({"head_dim": 128}, {}, "mask_45", ".9931806"),
    ({"head_dim": 128}, {}, "mask_54", ".4587103"),
    ({"head_dim": 128}, {}, "mask_63", "0.0"),
]


def oracle(method, geometry, length=None):
    frequencies, amplitude = standing(geometry)
    half = len(frequencies)
    count = round(method.fraction * half)
    for j in range(count):
        fade = 0.0 if method.clip == "hard" else 0.5 * (1 + math.cos(math.pi * j / max(count - 1, 1)))
        frequencies[half - count + j] *= fade
    return frequencies, amplitude
