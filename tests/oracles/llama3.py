import math

from tests.oracles._rotary import standing, trained

VARIANTS = [{}, {"factor": 32.0, "low_freq_factor": 2.0, "high_freq_factor": 3.0}]
_L31 = {"head_dim": 128, "length": 8192, "theta": 5e5}
REFERENCE = [
    (_L31, {"factor": 8.0}, "w_30", "1.371893683e-03"),
    (_L31, {"factor": 8.0}, "w_31", "8.567514597e-04"),
    (_L31, {"factor": 8.0}, "w_33", "3.126936499e-04"),
    (_L31, {"factor": 8.0}, "w_40", "3.428102355e-05"),
    (_L31, {"factor": 8.0}, "w_63", "3.068925878e-07"),
    (_L31, {"factor": 8.0}, "sum", "5.386058263"),
    ({**_L31, "head_dim": 64}, {"factor": 32.0}, "w_16", "4.295567051e-04"),
    ({**_L31, "head_dim": 64}, {"factor": 32.0}, "sum", "2.968202397"),
]


def oracle(method, geometry, length=None):
    frequencies, amplitude = standing(geometry)
    limit, low, high = trained(method, geometry), method.low_freq_factor, method.high_freq_factor
    found = []
    for w in frequencies:
        wavelength = 2 * math.pi / w if w else math.inf
        if wavelength > limit / low:
            found.append(w / method.factor)
        elif wavelength < limit / high:
            found.append(w)
        else:
            smooth = (limit / wavelength - low) / (high - low)
            found.append(w * ((1 - smooth) / method.factor + smooth))
    return found, amplitude
