import math

from tests.oracles._rotary import bounds, ramp, standing, trained

VARIANTS = [{}, {"original_max_position_embeddings": 512, "beta_fast": 16.0}]
REFERENCE = [
    ({"head_dim": 128, "length": 4096}, {}, "w_63@65536", "7.217387065e-06"),
    ({"head_dim": 128, "length": 4096}, {}, "sum@65536", "7.365234766"),
    ({"head_dim": 128, "length": 4096}, {}, "amplitude@65536", "1.2772589"),
]


def oracle(method, geometry, length=None):
    frequencies, amplitude = standing(geometry)
    limit = trained(method, geometry)
    factor = max(1.0, (length or 0) / limit)
    low, high = bounds(method.beta_fast, method.beta_slow, geometry, limit)
    found = [w / factor * ramp(i, low, high) + w * (1 - ramp(i, low, high)) for i, w in enumerate(frequencies)]
    return found, amplitude * (0.1 * math.log(factor) + 1)
