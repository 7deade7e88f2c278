import math

import torch

VARIANTS = [{}, {"zero_init": False}, {"hidden": 5, "c": 0.4, "threshold_length": 20, "zero_init": False}]
REFERENCE = [
    ({"threshold_length": 512}, (100, 50), ".453027"),
    ({"threshold_length": 512}, (511, 511), ".999515"),
    ({"threshold_length": 512}, (1023, 512), ".852823"),
    ({"threshold_length": 512}, (1023, 1023), "1.0"),
]


def share(r, m, c, threshold, epsilon=1e-6):
    psi = lambda x: math.log(abs(c) * x + 1)  # noqa: E731
    return psi(r) / (psi(max(m, threshold)) + epsilon)


def oracle(method, geometry, weights, queries, keys):
    w = {name: value.double() for name, value in weights.items()}
    threshold = abs(float(w["multiplier"]) * method.threshold_length)
    found = torch.zeros(geometry.heads, len(queries), len(keys), dtype=torch.float64)
    for i, m in enumerate(queries):
        for j, n in enumerate(keys):
            x = share(max(m - n, 0), m, float(w["c"]), threshold)
            hidden = [max(float(a) * x + float(b), 0.0) for a, b in zip(w["weight"], w["shift"], strict=True)]
            for h in range(geometry.heads):
                found[h, i, j] = sum(float(o) * y for o, y in zip(w["out"][h], hidden, strict=True))
    return found
