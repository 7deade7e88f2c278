from tests.oracles._rotary import rotate_all, spectrum, standing

VARIANTS = [{}, {"every": 3}, {"every": 3, "rope_theta": 500.0}, {"every": 1}]


def oracle(method, geometry, x, positions, side, weights):
    frequencies, amplitude = standing(geometry)
    if method.rope_theta:
        frequencies, amplitude = spectrum(method.rope_theta, geometry.rotation.dim), 1.0
    turns = 0 if (geometry.layer + 1) % method.every == 0 else 1
    return rotate_all(x, positions, lambda head, where: [turns * where * w for w in frequencies], amplitude)
