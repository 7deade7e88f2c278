import math


def parameters(method, learned, bounded=False):
    """Positive parameters from what is learned, one a head."""
    found = []
    for value in learned.double().tolist():
        if method.parametrization == "clamp":
            found.append(min(max(value, 0.01), 2.0 if bounded else math.inf))
        elif bounded:
            found.append(0.01 + 1.99 / (1 + math.exp(-value)))
        else:
            found.append(0.01 + math.log(1 + math.exp(value)))
    return found
