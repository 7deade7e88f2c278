import math

BATTERY = {"original_max_position_embeddings": 8}  # acts within the few tokens of the battery
VARIANTS = [{}, {"original_max_position_embeddings": 16}]
REFERENCE = [({"length": 4096}, {}, "at 16383", "1.1666667"), ({"length": 4096}, {}, "at 4095", "1.0")]


def oracle(method, geometry, positions):
    limit = method.original_max_position_embeddings or geometry.length
    return [[max(1.0, math.log(m + 1) / math.log(limit)) for m in row] for row in positions.tolist()]
