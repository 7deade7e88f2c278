import math

from tests.oracles._rotary import rotate_all

VARIANTS = [{}, {"prefix": 5, "rope_theta": 10.0}, {"rows": 3, "columns": 9}]


def oracle(method, geometry, x, positions, side, weights):
    prefix = geometry.prefix if method.prefix is None else method.prefix
    d = geometry.head_dim
    rows, columns = method.rows or geometry.grid[0], method.columns or geometry.grid[1]
    axis = [1 / method.rope_theta ** (4 * k / d) for k in range(d // 4)]

    def angles(head, where):
        patch = where - prefix
        if patch < 0:
            return [0.0] * (d // 2)
        y = 2 * (patch // columns + 0.5) / rows - 1
        across = 2 * (patch % columns + 0.5) / columns - 1
        return [2 * math.pi * y * f for f in axis] + [2 * math.pi * across * f for f in axis]

    return rotate_all(x, positions, angles)
