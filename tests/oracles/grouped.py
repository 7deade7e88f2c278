import math

VARIANTS = [{}, {"group_size": 5}, {"group_size": 1}, {"group_size": None}, {"group_size": None, "factor": 3.0}]


def oracle(method, geometry, tokens):
    """Positions of a document of so many tokens."""
    group = method.group_size or math.ceil(tokens / geometry.length)
    return [math.floor(n / group) for n in range(tokens)]
