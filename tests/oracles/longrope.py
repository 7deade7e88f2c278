import math

from tests.oracles._rotary import standing, trained

VARIANTS = [{}, {"attention_factor": 1.5}, {"factor": 1.0}]
REFERENCE = [
    ({"length": 4096}, {"factor": 32.0}, "amplitude", "1.1902380714"),
    ({"length": 8192}, {"factor": 16.0}, "amplitude", "1.1435437498"),
    ({"length": 4096}, {"factor": 4.0}, "amplitude", "1.0801234497"),
]


def oracle(method, geometry, length=None):
    frequencies, amplitude = standing(geometry)
    half, limit = len(frequencies), trained(method, geometry)
    if length is not None and length > limit:
        divisors = method.long_factor or [method.factor ** (2 * i / (2 * half - 2)) for i in range(half)]
    else:
        divisors = method.short_factor or [1.0] * half
    own = math.sqrt(1 + math.log(method.factor) / math.log(limit))
    return [w / f for w, f in zip(frequencies, divisors, strict=True)], amplitude * (method.attention_factor or own)
