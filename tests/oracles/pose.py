from collections import Counter
from fractions import Fraction

VARIANTS = [{}, {"length": 12}]


def outcomes(method, geometry, tokens):
    """Every sequence of positions that training may give a window, with its probability."""
    length = method.length or geometry.length
    found = Counter()
    firsts, skips = range(1, (tokens + 1) // 2 + 1), range(length - tokens + 1)
    for first in firsts:
        for skip in skips:
            positions = (*range(first), *(n + skip for n in range(first, tokens)))
            found[positions] += Fraction(1, len(firsts) * len(skips))
    return found


def oracle(method, geometry, tokens):
    return list(range(tokens))
