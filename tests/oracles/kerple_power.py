import torch

from tests.oracles._kerple import parameters

VARIANTS = [{}, {"parametrization": "clamp"}, {"seed": 3}]


def oracle(method, geometry, weights, queries, keys):
    a, p = parameters(method, weights["a"]), parameters(method, weights["p"], bounded=True)
    found = [[[-a[h] * abs(m - n) ** p[h] for n in keys] for m in queries] for h in range(geometry.heads)]
    return torch.tensor(found, dtype=torch.float64)
