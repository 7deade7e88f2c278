import math

import torch

from tests.oracles._rotary import rotate_one, spectrum

VARIANTS = [{}, {"scale_base": 64.0, "gamma": 0.7, "rope_theta": 500.0}]
REFERENCE = [
    ({"head_dim": 64}, {}, "zeta_0", ".28571430"),
    ({"head_dim": 64}, {}, "zeta_31", ".97767860"),
    ({"head_dim": 64}, {}, "zeta_0 ** 2", ".08163266"),
]


def oracle(method, geometry, q, k, query_positions, key_positions):
    d = geometry.head_dim
    frequencies = spectrum(method.rope_theta, d)
    zeta = [(2 * i + method.gamma * d) / ((1 + method.gamma) * d) for i in range(d // 2)]
    logits = torch.full((q.shape[0], q.shape[1], k.shape[1]), -math.inf, dtype=torch.float64)
    for a, m in enumerate(query_positions.tolist()):
        for c, n in enumerate(key_positions.tolist()):
            if n > m:
                continue
            fade = torch.tensor([z ** ((m - n) / method.scale_base) for z in zeta] * 2, dtype=torch.float64)
            for h in range(q.shape[0]):
                turned = rotate_one(q[h, a].double(), [(m - n) * w for w in frequencies])
                key = k[h * k.shape[0] // q.shape[0], c].double()
                logits[h, a, c] = geometry.scaling * (fade * turned * key).sum()
    return logits
