import torch

from tests.oracles._rotary import rotate_all, spectrum

BATTERY = {"rope_theta": 500.0}  # acts within the few tokens of the battery
VARIANTS = [{}, {"mrope_interleaved": True}, {"rope_theta": 500.0}]


def oracle(method, geometry, x, positions, side, weights):
    frequencies = frequencies_of(method, geometry)
    return rotate_all(x, positions, lambda head, where: [where * w for w in frequencies])


def frequencies_of(method, geometry):
    return spectrum(method.rope_theta or geometry.rotation.theta, geometry.rotation.dim)


def three_rows(method, geometry, x, rows):
    """Positions (3, length): time, row and column of each token, with the pairs of Qwen2-VL or Qwen3-VL."""
    frequencies = frequencies_of(method, geometry)
    half = len(frequencies)
    sections = [int(n) for n in method.mrope_section]
    if method.mrope_interleaved:
        axis = [0] * half
        for row in (1, 2):
            for i in range(row, 3 * sections[row], 3):
                axis[i] = row
    else:
        axis = [row for row in range(3) for _ in range(sections[row])]

    def angles(head, t):
        return [float(rows[axis[i], t]) * w for i, w in enumerate(frequencies)]

    return rotate_all(x, torch.arange(x.shape[2])[None], angles)
