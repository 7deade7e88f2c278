from tests.oracles._rotary import banded

VARIANTS = [{}, {"group_size": 4, "window": 8}, {"group_size": 3, "window": 10}, {"group_size": 7, "window": 5}]
REFERENCE = [
    (
        {"length": 32},
        {"group_size": 4, "window": 8},
        "row 31",
        "13 13 13 13 12 12 12 12 11 11 11 11 10 10 10 10 9 9 9 9 8 8 8 8 7 6 5 4 3 2 1 0",
    ),
]


def relative(method, geometry, m, n):
    window = method.window or geometry.length // 4
    if m - n < window:
        return m - n
    group = method.group_size
    return m // group + window - window // group - n // group


def oracle(method, geometry, inv_freq, q, k, query_positions, key_positions):
    return banded(
        geometry, inv_freq, q, k, query_positions, key_positions, lambda m, n: relative(method, geometry, m, n)
    )
