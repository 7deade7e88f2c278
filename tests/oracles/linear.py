from tests.oracles._rotary import standing


def oracle(method, geometry, length=None):
    frequencies, amplitude = standing(geometry)
    return [w / method.factor for w in frequencies], amplitude
