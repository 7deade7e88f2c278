import math

from tests.oracles._rotary import bounds, ramp, standing, trained

VARIANTS = [{}, {"factor": 4.0}]
_D128 = {"head_dim": 128}
REFERENCE = [
    (_D128, {}, "lambda_0", "6"),
    (_D128, {}, "lambda_1", "7"),
    (_D128, {}, "lambda_2", "8"),
    (_D128, {}, "lambda_3", "10"),
    (_D128, {}, "lambda_4", "11"),
    (_D128, {}, "lambda_5", "13"),
    (_D128, {}, "lambda_63", "54410"),
]


def oracle(method, geometry, length=None):
    frequencies, amplitude = standing(geometry)
    low, high = bounds(32.0, 1.0, geometry, trained(method, geometry))
    found = []
    for i, w in enumerate(frequencies):
        share = ramp(i, low, high)
        scaled = w / method.factor * share + w * (1 - share)
        found.append(2 * math.pi / max(1, round(2 * math.pi / scaled)) if scaled else 0.0)
    return found, amplitude * (0.1 * math.log(method.factor) + 1)
