import torch

from tests.oracles._content import causal

VARIANTS = [
    {},
    {"gate": True},
    {"conv_size": 1, "rank": 3},
    {"conv_size": 2, "rope_theta": 1.0, "max_angle": 2.0, "gate": True},
]


def angles(method, geometry, hidden, weights):
    """Own angle of each token, (length, kv_heads, half)."""
    length, half = hidden.shape[0], geometry.head_dim // 2
    y = hidden.double().reshape(length, geometry.heads, -1)
    y = y / torch.sqrt((y * y).sum(-1, keepdim=True) + 1e-6)
    y = y.reshape(length, -1)
    raw = y @ weights["down"].double().T @ weights["up"].double().T
    conv = weights["conv"].double()
    size = conv.shape[1]
    found = []
    for t in range(length):
        phi = sum(conv[:, j] * raw[t - size + 1 + j] for j in range(size) if t - size + 1 + j >= 0)
        phi = phi.reshape(geometry.kv_heads, half)
        if method.gate:
            gate = 1 / (1 + torch.exp(-(y[t] @ weights["gate"].double().T + weights["gate_bias"].double())))
            phi = phi * gate[:, None]
        temperature = [method.max_angle * method.rope_theta ** (-2 * i / geometry.head_dim) for i in range(half)]
        found.append(phi * torch.tensor(temperature, dtype=torch.double))
    return torch.stack(found)


def oracle(method, geometry, hidden, q, k, weights):
    own, group = angles(method, geometry, hidden, weights), q.shape[0] // k.shape[0]
    half = geometry.head_dim // 2
    rows = []
    for h in range(q.shape[0]):
        rows.append([])
        for m in range(q.shape[1]):
            row = []
            for n in range(m + 1):
                turn = own[n + 1 : m + 1, h // group].sum(0)
                x, key = q[h, m].double(), k[h // group, n].double()
                a, b = x[:half], x[half:]
                turned = torch.cat((a * turn.cos() - b * turn.sin(), a * turn.sin() + b * turn.cos()))
                row.append(geometry.scaling * turned @ key)
            rows[-1].append(row)
    return causal(rows)
