import math

VARIANTS = [
    {},
    {"layout": "half", "length": 300, "base": 500.0},
    {"layout": "whisper", "scale": 0.25},
    {"learned_scale": True},
    {"learned_scale": True, "scale": 3.0, "layout": "half"},
]


def oracle(method, geometry):
    """What is added at the start of training, row by row."""
    half = geometry.width // 2
    steps = half - 1 if method.layout == "whisper" else half
    scale = method.scale or (geometry.width**-0.5 if method.learned_scale else 1.0)
    table = []
    for n in range(method.length or geometry.length):
        angles = [n * method.base ** (-i / steps) for i in range(half)]
        sines, cosines = [math.sin(a) for a in angles], [math.cos(a) for a in angles]
        if method.layout == "interleaved":
            row = [value for pair in zip(sines, cosines, strict=True) for value in pair]
        else:
            row = sines + cosines
        table.append([scale * value for value in row])
    return table
