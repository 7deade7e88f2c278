import math

import torch

TOLERANCE = 5e-3  # float32 angles at 5000 tokens, 64 of them
VARIANTS = [{}, {"dim": 64}, {"dim": 16, "rope_theta": 100.0}]
REFERENCE = [(64, 0, "32"), (64, 1, "31.376529"), (64, 10, "22.8907"), (64, 100, "18.0123")]


def total(dim, r, theta=10000.0):
    return sum(math.cos(r / theta ** (2 * i / dim)) for i in range(1, dim // 2 + 1))


def oracle(method, geometry, weights, queries, keys):
    ratio = [8 * h / geometry.heads for h in range(1, geometry.heads + 1)]
    found = [[[total(method.dim, m - n, method.rope_theta) / c for n in keys] for m in queries] for c in ratio]
    return torch.tensor(found, dtype=torch.float64)
