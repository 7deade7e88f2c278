from fractions import Fraction
from itertools import combinations

VARIANTS = [{}, {"length": 7}]


def outcomes(method, geometry, tokens):
    """Every sequence of positions that training may give a sequence, with its probability."""
    every = list(combinations(range(method.length or geometry.length), tokens))
    return {positions: Fraction(1, len(every)) for positions in every}


def oracle(method, geometry, tokens):
    return list(range(tokens))
