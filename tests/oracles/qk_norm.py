import math

VARIANTS = [{}, {"gain": 2.5}, {"eps": 0.5}, {"over": "all"}]


def oracle(method, x, gain):
    """Numbers [head][token][dimension]."""
    heads = x.tolist()

    def size(h, t):
        rows = [heads[h][t]] if method.over == "head" else [head[t] for head in heads]
        numbers = [v for row in rows for v in row]
        return math.sqrt(sum(v * v for v in numbers) / len(numbers) + method.eps)

    return [
        [[gain[h].item() * v / size(h, t) for v in row] for t, row in enumerate(head)] for h, head in enumerate(heads)
    ]
