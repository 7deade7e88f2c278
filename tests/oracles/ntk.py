from tests.oracles._rotary import spectrum, standing

REFERENCE = [
    ({"head_dim": 128}, {"factor": 8.0}, "theta", "82684.6226"),
    ({"head_dim": 16}, {"factor": 4.0}, "theta", "48760.5462"),
]


def oracle(method, geometry, length=None):
    frequencies, amplitude = standing(geometry)
    dim = geometry.rotation.dim
    larger = geometry.rotation.theta * method.factor ** (dim / (dim - 2))
    change = [new / old for new, old in zip(spectrum(larger, dim), spectrum(geometry.rotation.theta, dim), strict=True)]
    return [w * c for w, c in zip(frequencies, change, strict=True)], amplitude
