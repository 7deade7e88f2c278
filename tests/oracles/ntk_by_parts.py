from tests.oracles._rotary import bounds, ramp, standing, trained

VARIANTS = [{}, {"factor": 16.0, "beta_0": 2.0, "gamma_1": 4.0}]
_PAPER = {"head_dim": 128, "length": 2048}
REFERENCE = [
    (_PAPER, {"factor": 4.0}, "bounds(1.25, 0.75)", "38 43"),
    (_PAPER, {"factor": 4.0}, "bounds(16, 2)", "20 36"),
]


def oracle(method, geometry, length=None):
    frequencies, amplitude = standing(geometry)
    limit, dim = trained(method, geometry), geometry.rotation.dim
    found = []
    for i, w in enumerate(frequencies):
        ntk = 1 - ramp(i, *bounds(method.beta_0, method.beta_1, geometry, limit))
        keep = 1 - ramp(i, *bounds(method.gamma_0, method.gamma_1, geometry, limit))
        mixed = w / method.factor * (1 - ntk) + w * method.factor ** (-2 * i / (dim - 2)) * ntk
        found.append(mixed * (1 - keep) + w * keep)
    return found, amplitude
