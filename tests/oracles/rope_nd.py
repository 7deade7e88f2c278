from tests.oracles._rotary import rotate_all

VARIANTS = [{}, {"axes": 1, "rope_theta": 500.0}, {"axes": 3}]


def oracle(method, geometry, x, positions, side, weights):
    """Every axis has the token's position."""
    share = geometry.head_dim // (2 * method.axes)
    one = [method.rope_theta ** (-k / share) for k in range(share)]
    return rotate_all(x, positions, lambda head, where: [where * w for _ in range(method.axes) for w in one])
