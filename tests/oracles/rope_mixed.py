import math

from tests.oracles._rotary import rotate_all

VARIANTS = [{}, {"prefix": 0, "rope_theta": 100.0, "seed": 3}]


def oracle(method, geometry, x, positions, side, weights):
    prefix = geometry.prefix if method.prefix is None else method.prefix
    fx, fy = weights["frequencies"].double()
    columns = method.columns or geometry.grid[1]

    def angles(head, where):
        patch = where - prefix
        h = head * geometry.kv_heads // x.shape[1]
        if patch < 0:
            return [0.0] * (geometry.head_dim // 2)
        return [patch % columns * float(a) + patch // columns * float(b) for a, b in zip(fx[h], fy[h], strict=True)]

    return rotate_all(x, positions, angles)


def start(method, geometry):
    """Lengths that the vectors (fx, fy) have at the start, pair by pair."""
    d = geometry.head_dim
    return [method.rope_theta ** (-4 * k / d) for k in range(d // 4)] * 2, math.pi / 2
