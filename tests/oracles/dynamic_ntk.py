from tests.oracles._rotary import spectrum, standing, trained

_PAPER = {"head_dim": 128, "length": 4096}
REFERENCE = [
    (_PAPER, {"factor": 2.0}, "w_1@8192", ".8509942889"),
    (_PAPER, {"factor": 2.0}, "w_63@8192", "3.849273344e-05"),
    (_PAPER, {"factor": 2.0}, "sum@8192", "6.710932415"),
    (_PAPER, {"factor": 2.0}, "w_63@16384", "1.649688602e-05"),
    (_PAPER, {"factor": 2.0}, "sum@16384", "6.235328334"),
]


def oracle(method, geometry, length=None):
    frequencies, amplitude = standing(geometry)
    dim, limit = geometry.rotation.dim, trained(method, geometry)
    if length is None or length <= limit:
        return frequencies, amplitude
    base = geometry.rotation.theta * (method.factor * length / limit - (method.factor - 1)) ** (dim / (dim - 2))
    change = [new / old for new, old in zip(spectrum(base, dim), spectrum(geometry.rotation.theta, dim), strict=True)]
    return [w * c for w, c in zip(frequencies, change, strict=True)], amplitude
