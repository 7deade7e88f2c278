import torch

from pospatch.methods.alibi import slopes
from tests.oracles._content import causal, scores

VARIANTS = [
    {},
    {"bias": "alibi", "hidden": 5},
    {"kernel_size": 3, "hidden": 7},
    {"kernel_size": 5, "bias": "alibi"},
    {"bias": "t5_bias", "kernel_size": 3},
]


def inner(method, geometry, weights, h, r):
    if method.bias == "alibi":
        return torch.tensor(-slopes(geometry.heads)[h] * r, dtype=torch.double)
    if method.bias == "kerple_log":
        p, a = (0.01 + torch.log(1 + torch.exp(weights[f"inner_{name}"][h].double())) for name in ("p", "a"))
        return -p * torch.log(1 + a * r)
    assert method.bias == "t5_bias"
    assert r < 16  # exact buckets
    return weights["inner_table"][r, h].double()


def along_keys(x, weight, bias):
    """x: (channels, keys) of one query; what lies outside is zero."""
    side = weight.shape[2] // 2
    columns = []
    for n in range(x.shape[1]):
        total = bias.double()
        for j in range(weight.shape[2]):
            if 0 <= n + j - side < x.shape[1]:
                total = total + weight[:, :, j].double() @ x[:, n + j - side]
        columns.append(total)
    return torch.stack(columns, dim=1)


def oracle(method, geometry, hidden, q, k, weights):
    score, heads = scores(geometry, q, k), q.shape[0]
    rows = [[] for _ in range(heads)]
    for m in range(q.shape[1]):
        a = score[:, m, : m + 1]
        b = torch.stack(
            [torch.stack([inner(method, geometry, weights, h, m - n) for n in range(m + 1)]) for h in range(heads)]
        )
        middle = along_keys(torch.cat((a, b)), weights["first"], weights["first_bias"])
        middle = torch.where(middle > 0, middle, 0.01 * middle)
        total = a + b + along_keys(middle, weights["last"], weights["last_bias"])
        for h in range(heads):
            rows[h].append(list(total[h]))
    return causal(rows)
