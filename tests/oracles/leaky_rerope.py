from tests.oracles._rotary import banded

VARIANTS = [{}, {"window": 5, "factor": 3.0}]
REFERENCE = [({"length": 4096}, {"window": 512}, "pair 4096 0", "736")]


def relative(method, geometry, m, n):
    window, r = method.window or geometry.length // 4, m - n
    return r if r < window else window + (r - window) / method.factor


def oracle(method, geometry, inv_freq, q, k, query_positions, key_positions):
    return banded(
        geometry, inv_freq, q, k, query_positions, key_positions, lambda m, n: relative(method, geometry, m, n)
    )
