"""The cache of the paper, acted out: tokens enter one by one, and positions are places in what is kept."""

from tests.oracles._rotary import banded

BATTERY = {"sinks": 2, "window": 8}  # acts within the few tokens of the battery
VARIANTS = [{}, {"sinks": 2, "window": 5}, {"sinks": 0, "window": 7}]


def relative(method, geometry, m, n):
    window = method.window or geometry.length - method.sinks
    kept = []
    for token in range(m + 1):
        kept.append(token)
        if len(kept) > method.sinks + window:
            del kept[method.sinks]
    return kept.index(m) - kept.index(n) if n in kept else None


def oracle(method, geometry, inv_freq, q, k, query_positions, key_positions):
    return banded(
        geometry, inv_freq, q, k, query_positions, key_positions, lambda m, n: relative(method, geometry, m, n)
    )
