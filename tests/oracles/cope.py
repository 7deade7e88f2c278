import math

import torch

from tests.oracles._content import causal, scores

VARIANTS = [{}, {"max_position": 3}, {"max_position": 2}]


def oracle(method, geometry, hidden, q, k, weights):
    score, table = scores(geometry, q, k), weights["table"].double()
    rows = []
    for h in range(q.shape[0]):
        rows.append([])
        for m in range(q.shape[1]):
            row = []
            for n in range(m + 1):
                p = sum(1 / (1 + torch.exp(-score[h, m, t])) for t in range(n, m + 1))
                p = torch.clamp(p, max=method.max_position - 1)
                low, high = math.floor(p), math.ceil(p)
                between = (p - low) * table[high] + (1 - p + low) * table[low] if high > low else table[low]
                row.append(score[h, m, n] + q[h, m].double() @ between)
            rows[-1].append(row)
    return causal(rows)
