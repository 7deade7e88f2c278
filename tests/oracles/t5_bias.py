import math

import torch

VARIANTS = [{}, {"num_buckets": 16, "max_distance": 24}, {"num_buckets": 8, "max_distance": 64}]
REFERENCE = [
    (
        True,
        {**{r: r for r in range(16)}, 16: 16, 20: 17, 31: 21, 32: 21, 50: 24, 64: 26, 90: 29, 91: 29, 100: 30, 127: 31}
        | {128: 31, 129: 31, 10000: 31},
    ),
    (
        False,
        {7: 7, 8: 8, 11: 8, 12: 9, 16: 10, 31: 11, 32: 12, 50: 13, 64: 14, 90: 14, 91: 15, 500: 15, -1: 17, -500: 31}
        | {-7: 23, -8: 24, -12: 25, -91: 31},
    ),
]


def bucket(method, causal, r):
    """Bucket of the distance r = m - n."""
    count, start = method.num_buckets, 0
    if not causal:
        count //= 2
        start, r = (count if r < 0 else 0), abs(r)
    r = max(r, 0)
    exact = count // 2
    if r < exact:
        return start + r
    share = math.log(r / exact) / math.log(method.max_distance / exact)
    return start + min(exact + math.floor(share * (count - exact) + 1e-6), count - 1)


def oracle(method, geometry, weights, queries, keys):
    table = weights["table"].double()
    rows = [[bucket(method, geometry.causal, m - n) for n in keys] for m in queries]
    return torch.stack([torch.stack([table[b] for b in row]) for row in rows]).permute(2, 0, 1)
