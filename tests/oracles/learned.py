import torch

BATTERY = {"factor": 2.0}  # acts within the few tokens of the battery
VARIANTS = [
    {},
    {"factor": 2.5},
    {"length": 77, "resize": "linear"},
    {"length": 77, "resize": "cubic"},
    {"factor": 3.0, "resize": "cubic"},
    {"factor": 4.0, "resize": "grid"},
    {"factor": 3.0, "resize": "grid", "short": "plain"},
    {"factor": 2.5, "resize": "tile"},
]


def spline(p):
    """Coefficients (piece, power, column) of the cubic spline, from its conditions as one system of linear equations."""
    pieces = p.shape[0] - 1
    system, wanted = [], []

    def condition(entries, value):
        row = torch.zeros(4 * pieces, dtype=torch.double)
        for piece, power, factor in entries:
            row[4 * piece + power] += factor
        system.append(row)
        wanted.append(value)

    nothing = torch.zeros_like(p[0])
    for i in range(pieces):
        condition([(i, 0, 1)], p[i])
        condition([(i, power, 1) for power in range(4)], p[i + 1])
    for i in range(pieces - 1):
        condition([(i, 1, 1), (i, 2, 2), (i, 3, 3), (i + 1, 1, -1)], nothing)
        condition([(i, 2, 2), (i, 3, 6), (i + 1, 2, -2)], nothing)
    for i in (0, pieces - 2):  # not a knot
        condition([(i, 3, 1), (i + 1, 3, -1)], nothing)
    found = torch.linalg.solve(torch.stack(system), torch.stack(wanted))
    return found.view(pieces, 4, -1)


def oracle(method, geometry):
    p = geometry.table.double()
    old = len(p)
    rows = method.length or round((method.factor or 1.0) * old)
    pieces = spline(p) if method.resize == "cubic" else None
    table = []
    for k in range(rows):
        if method.resize == "tile":
            table.append(p[k % old])
            continue
        x = min(k * old / rows, old - 1) if method.resize == "grid" else k * (old - 1) / (rows - 1)
        i = min(int(x + 1e-9), old - 2)
        t = x - i
        if pieces is not None:
            table.append(sum(pieces[i, power] * t**power for power in range(4)))
        else:
            table.append((1 - t) * p[i] + t * p[i + 1])
    return torch.stack(table).tolist()


def reading(method, geometry, positions):
    """Rows read by one document at positions 0, 1, ... (every row where the form has no rule of its own)."""
    old = len(geometry.table)
    if method.resize == "grid" and method.short != "plain" and len(positions) <= old:
        return [n * round(method.factor) for n in positions]
    return positions
