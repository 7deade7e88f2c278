from tests.oracles._rotary import banded

VARIANTS = [{}, {"window": 3}]


def relative(method, geometry, m, n):
    return min(m - n, method.window or geometry.length // 4)


def oracle(method, geometry, inv_freq, q, k, query_positions, key_positions):
    return banded(
        geometry, inv_freq, q, k, query_positions, key_positions, lambda m, n: relative(method, geometry, m, n)
    )
