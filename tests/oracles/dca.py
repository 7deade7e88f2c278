from tests.oracles._rotary import banded

BATTERY = {"chunk_size": 8, "local_size": 2}  # acts within the few tokens of the battery
VARIANTS = [{}, {"chunk_size": 9, "local_size": 2}, {"chunk_size": 12, "local_size": 0, "attention_factor": 1.1}]
_COUNT = "24 23 22 21 20 19 18 17 16 15 14 13 12 11 10 9 8 7 6 5"
REFERENCE = [
    ({"length": 32}, {}, "row 55", f"{_COUNT} {_COUNT} 15 14 13 12 11 10 9 8 7 6 5 4 3 2 1 0"),
]


def relative(method, geometry, m, n):
    chunk = method.chunk_size or 3 * geometry.length // 4
    local = geometry.length // 8 if method.local_size is None else method.local_size
    size = chunk - local
    behind = m // size - n // size
    if behind == 0:
        query = m % size
    elif behind == 1:
        query = min(m % size + size, chunk)
    else:
        query = min(2 * size - 1, chunk)
    return query - n % size


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
