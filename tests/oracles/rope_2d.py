from tests.oracles._rotary import rotate_all

VARIANTS = [{}, {"prefix": 0, "rope_theta": 10.0}, {"prefix": 5, "columns": 3}]


def oracle(method, geometry, x, positions, side, weights):
    prefix = geometry.prefix if method.prefix is None else method.prefix
    d, columns = geometry.head_dim, method.columns or geometry.grid[1]
    axis = [method.rope_theta ** (-4 * k / d) for k in range(d // 4)]

    def angles(head, where):
        patch = where - prefix
        if patch < 0:
            return [0.0] * (d // 2)
        return [patch % columns * f for f in axis] + [patch // columns * f for f in axis]

    return rotate_all(x, positions, angles)
