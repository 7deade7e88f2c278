from tests.oracles._rotary import spectrum

BATTERY = {"rope_theta": 500.0}  # acts within the few tokens of the battery
VARIANTS = [{}, {"rope_theta": 500.0}, {"partial_rotary_factor": 0.5}]


def oracle(method, geometry, length=None):
    rotation = geometry.rotation
    dim = rotation.dim if rotation else geometry.head_dim
    if method.partial_rotary_factor is not None:
        dim = int(geometry.head_dim * method.partial_rotary_factor)
    return spectrum(method.rope_theta or (rotation.theta if rotation else 10000.0), dim), 1.0
