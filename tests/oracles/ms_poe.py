from tests.oracles._rotary import rotate_all, standing

VARIANTS = [{}, {"min_ratio": 1.0, "max_ratio": 3.0, "first_layer": 0}, {"first_layer": 7}]
_HEADS = {"heads": 32, "kv_heads": 32, "layer": 2}
REFERENCE = [
    (_HEADS, {}, "ratio_0", "1.2"),
    (_HEADS, {}, "ratio_1", "1.21875"),
    (_HEADS, {}, "ratio_31", "1.78125"),
]


def oracle(method, geometry, x, positions, side, weights):
    frequencies, amplitude = standing(geometry)

    def angles(head, where):
        shared = head * geometry.kv_heads // x.shape[1]
        ratio = method.min_ratio + (method.max_ratio - method.min_ratio) * shared / geometry.kv_heads
        if geometry.layer < method.first_layer:
            ratio = 1.0
        return [where / ratio * w for w in frequencies]

    return rotate_all(x, positions, angles, amplitude)
