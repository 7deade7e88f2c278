BATTERY = {"factor": 2.0}  # acts within the few tokens of the battery
VARIANTS = [{}, {"factor": 5.0}, {"alpha": 0.3, "length": 100}, {"alpha": 0.7}]


def oracle(method, geometry):
    p = geometry.table.double().tolist()
    n, alpha = len(p), method.alpha
    u = [[(value - alpha * first) / (1 - alpha) for value, first in zip(row, p[0], strict=True)] for row in p]
    table = []
    for k in range(method.length or round((method.factor or 2.0) * n)):
        i, j = divmod(k, n)
        table.append([alpha * coarse + (1 - alpha) * fine for coarse, fine in zip(u[i], u[j], strict=True)])
    return table
