BATTERY = {"delimiters": [10, 20, 30, 40, 50, 60, 70, 80, 90]}  # some of them stand among a few tokens
BEDS = [("learned", "rope")]  # what it is put on
VARIANTS = [{"delimiters": [3]}, {"delimiters": [3, 7]}]


def oracle(method, geometry, tokens):
    """(place within its segment, number of its segment) of each token of one document."""
    segments = [[]]
    for token in tokens:
        segments[-1].append(token)
        if token in method.delimiters:
            segments.append([])
    places = [(place, number) for number, segment in enumerate(segments) for place in range(len(segment))]
    return [min(place, geometry.length - 1) for place, _ in places], [number for _, number in places]
