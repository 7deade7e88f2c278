import math

from tests.oracles._rotary import bounds, ramp, standing, trained

VARIANTS = [
    {},
    {"factor": 16.0, "truncate": False},
    {"factor": 40.0, "mscale": 0.7, "mscale_all_dim": 0.5},
    {"factor": 8.0, "interpolation": "wavelength"},
    {"attention_factor": 1.25, "original_max_position_embeddings": 512},
    {"beta_fast": 8.0, "beta_slow": 2.0},
]
_LLAMA2 = {"head_dim": 128, "length": 4096}
_QWEN = {"head_dim": 128, "length": 32768, "theta": 1e6}
_DEEPSEEK = {"head_dim": 64, "length": 4096}
_MSCALE = {"factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0}
REFERENCE = [
    (_LLAMA2, {"factor": 2.0}, "amplitude", "1.0693147"),
    (_LLAMA2, {"factor": 4.0}, "amplitude", "1.1386294"),
    (_LLAMA2, {"factor": 8.0}, "amplitude", "1.2079442"),
    (_LLAMA2, {"factor": 16.0}, "amplitude", "1.2772589"),
    (_LLAMA2, {"factor": 32.0}, "amplitude", "1.3465736"),
    (_LLAMA2, {"factor": 16.0}, "low", "20"),
    (_LLAMA2, {"factor": 16.0}, "high", "46"),
    ({"head_dim": 128, "length": 2048}, {"factor": 16.0}, "low", "16"),
    ({"head_dim": 128, "length": 2048}, {"factor": 16.0}, "high", "41"),
    (_QWEN, {"factor": 4.0}, "low", "23"),
    (_QWEN, {"factor": 4.0}, "high", "40"),
    (_LLAMA2, {"factor": 16.0}, "w_20", ".05623412877"),
    (_LLAMA2, {"factor": 16.0}, "w_21", ".04694085941"),
    (_LLAMA2, {"factor": 16.0}, "w_30", ".008526843973"),
    (_LLAMA2, {"factor": 16.0}, "w_45", "1.517716446e-04"),
    (_LLAMA2, {"factor": 16.0}, "w_46", "8.334509039e-05"),
    (_LLAMA2, {"factor": 16.0}, "w_63", "7.217387065e-06"),
    (_LLAMA2, {"factor": 16.0}, "sum", "7.365234766"),
    (_QWEN, {"factor": 4.0}, "w_30", "1.064360957e-03"),
    (_QWEN, {"factor": 4.0}, "w_63", "3.102344408e-07"),
    (_QWEN, {"factor": 4.0}, "sum", "5.144034828"),
    (_DEEPSEEK, _MSCALE, "amplitude", "1.0"),
    (_DEEPSEEK, _MSCALE, "w_31", "3.333803534e-06"),
    (_DEEPSEEK, _MSCALE, "sum", "3.948936266"),
]


def oracle(method, geometry, length=None):
    frequencies, amplitude = standing(geometry)
    low, high = bounds(method.beta_fast, method.beta_slow, geometry, trained(method, geometry), method.truncate)
    found = []
    for i, w in enumerate(frequencies):
        share = ramp(i, low, high)  # of interpolation
        if method.interpolation == "frequency":
            found.append(w / method.factor * share + w * (1 - share))
        else:
            found.append(w / (method.factor * share + (1 - share)))
    own = 0.1 * math.log(method.factor) + 1
    if method.mscale and method.mscale_all_dim:
        own = (0.1 * method.mscale * math.log(method.factor) + 1) / (
            0.1 * method.mscale_all_dim * math.log(method.factor) + 1
        )
    return found, amplitude * (method.attention_factor or own)
