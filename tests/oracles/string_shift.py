from tests.oracles._rotary import banded

VARIANTS = [{}, {"shift": 9, "window": 2, "attention_factor": 1.0}]
REFERENCE = [({"length": 32}, {}, "amplitude", "1.0693147")]


def relative(method, geometry, m, n):
    shift = method.shift or geometry.length // 3
    window = min(128, shift // 2) if method.window is None else method.window
    return m - n if m - n < shift else m - n - shift + window


def oracle(method, geometry, inv_freq, q, k, query_positions, key_positions):
    return banded(
        geometry,
        inv_freq,
        q,
        k,
        query_positions,
        key_positions,
        lambda m, n: relative(method, geometry, m, n),
        method.attention_factor,
    )
