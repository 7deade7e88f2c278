BATTERY = {"period": 8}  # acts within the few tokens of the battery
VARIANTS = [{}, {"period": 7}, {"factor": 9.0}]


def oracle(method, geometry, tokens):
    period, found = method.period or geometry.length, []
    for n in range(tokens):
        while n >= period:
            n -= period
        found.append(n)
    return found
