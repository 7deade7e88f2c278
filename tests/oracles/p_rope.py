from tests.oracles._rotary import spectrum

VARIANTS = [{}, {"p": 0.25}, {"p": 0.0}, {"p": 1.0, "rope_theta": 5e5}]
REFERENCE = [
    ({"head_dim": 128}, {"p": 0.25}, "sum", "6.714630261"),
    ({"head_dim": 128}, {"p": 0.75}, "sum", "7.453239572"),
]


def oracle(method, geometry, length=None):
    rotation = geometry.rotation
    dim = rotation.dim if rotation else geometry.head_dim
    whole = spectrum(method.rope_theta or (rotation.theta if rotation else 10000.0), dim)
    return [w if i < int(method.p * dim // 2) else 0.0 for i, w in enumerate(whole)], 1.0
