def oracle(method, geometry):
    """Nothing positional at all: no vector is added, nothing rotates, no logit is moved."""
    return None
