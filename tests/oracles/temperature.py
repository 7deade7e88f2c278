import math

BATTERY = {"floor_scale": 4}  # acts within the few tokens of the battery
VARIANTS = [{}, {"attn_scale": 0.3, "floor_scale": 16}]
REFERENCE = [
    ({}, {}, "at 0", "1.0"),
    ({}, {}, "at 8190", "1.0"),
    ({}, {}, "at 8191", "1.0693147"),
    ({}, {}, "at 16383", "1.1098612"),
    ({}, {}, "at 100000", "1.2564949"),
]


def oracle(method, geometry, positions):
    def factor(m):
        return 1 + method.attn_scale * math.log(1 + math.floor((m + 1) / method.floor_scale))

    return [[factor(m) for m in row] for row in positions.tolist()]
