import torch

from tests.oracles._content import scores, spans

VARIANTS = [{}, {"initial_bias": -2.0}]


def oracle(method, geometry, hidden, q, k, weights):
    z = hidden.double() @ weights["weight"].double().T + weights["bias"].double()
    added = torch.log(1 + torch.exp(z))
    return scores(geometry, q, k) - spans(added.T).abs()
