import math

import torch

VARIANTS = [{}, {"rope_theta": 500.0}]


def oracle(method, geometry, x, positions, side, weights):
    d = geometry.head_dim
    out = torch.zeros(*x.shape[:3], 2 * d, dtype=torch.float64)
    for b in range(x.shape[0]):
        for h in range(x.shape[1]):
            for t in range(x.shape[2]):
                where = int(positions[b % positions.shape[0], t])
                for j in range(d):
                    size = math.log1p(math.exp(float(x[b, h, t, j])))
                    angle = where * method.rope_theta ** (-j / d)
                    if side == "key":
                        bias = float(weights["bias"][h * geometry.kv_heads // x.shape[1], j])
                        angle += min(max(bias, -2 * math.pi), 0.0)
                    out[b, h, t, j], out[b, h, t, j + d] = size * math.cos(angle), size * math.sin(angle)
    return out
