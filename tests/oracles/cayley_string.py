import torch

from tests.oracles._rotary import rotate_all, spectrum

VARIANTS = [{}, {"rope_theta": 500.0}, {"axes": 2}]


def oracle(method, geometry, x, positions, side, weights):
    dim = geometry.rotation.dim
    share = dim // (2 * method.axes)
    frequencies = spectrum(method.rope_theta or geometry.rotation.theta, 2 * share) * method.axes
    free = weights["antisymmetric"].double()
    skew = free - free.T
    one = torch.eye(dim, dtype=torch.float64)
    basis = (one - skew) @ torch.linalg.inv(one + skew)
    x = x.double().clone()
    x[..., :dim] = torch.einsum("ji,bhtj->bhti", basis, x[..., :dim])
    return rotate_all(x, positions, lambda head, where: [where * w for w in frequencies])
