import torch

VARIANTS = [{}, {"biased_heads": 1}, {"biased_heads": 2}]
REFERENCE = [
    (8, "0.5 0.25 0.125 0.0625 0.03125 0.015625 0.0078125 0.00390625"),
    (
        12,
        ".5 .25 .125 .0625 .03125 .015625 .0078125 .00390625 .70710678 .35355339 .1767767 .08838835",
    ),
    (20, "- - - - - - - - - - - - - - - - .8408964 .5946036 .4204482 .2973018"),
]


def slope_list(heads):
    power = 1
    while 2 * power <= heads:
        power *= 2
    own = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    finer = [2 ** (-8 * (h + 1) / (2 * power)) for h in range(2 * power)]
    return own + finer[0::2][: heads - power]


def oracle(method, geometry, weights, queries, keys):
    count = method.biased_heads or geometry.heads
    slope = slope_list(count) + [0] * (geometry.heads - count)
    return torch.tensor([[[-s * abs(m - n) for n in keys] for m in queries] for s in slope], dtype=torch.float64)
