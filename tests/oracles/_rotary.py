"""What the rotary oracles share: the frequencies that stand in a layer, and rotation of one pair at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pospatch.geometry import Geometry


def standing(geometry: Geometry) -> tuple[list[float], float]:
    """(frequencies, amplitude) of the rotary encoding in the layer."""
    rotation = geometry.rotation
    if rotation.rope_type == "default":
        return spectrum(rotation.theta, rotation.dim), rotation.attention_factor
    return [float(w) for w in rotation.inv_freq], rotation.attention_factor


def spectrum(theta: float, dim: int) -> list[float]:
    return [theta ** (-2 * i / dim) for i in range(dim // 2)]


def trained(method: object, geometry: Geometry) -> int:
    return method.original_max_position_embeddings or geometry.length


def ramp(i: int, low: float, high: float) -> float:
    return min(max((i - low) / (high - low), 0.0), 1.0)


def correction(turns: float, dim: int, theta: float, length: int) -> float:
    """The pair that makes `turns` turns in `length` tokens."""
    return dim * math.log(length / (2 * math.pi * turns)) / (2 * math.log(theta))


def bounds(fast: float, slow: float, geometry: Geometry, length: int, truncate: bool = True) -> tuple[float, float]:
    dim, theta = geometry.rotation.dim, geometry.rotation.theta
    low, high = correction(fast, dim, theta, length), correction(slow, dim, theta, length)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return low, high + 0.001 if low == high else high


def rotate_one(vector: Tensor, angles: list[float], amplitude: float = 1.0) -> Tensor:
    """Each pair (i, i + half) as a complex number times amplitude * exp(1j * angle); the rest passes."""
    half, out = len(angles), vector.double().clone()
    for i, angle in enumerate(angles):
        pair = complex(float(vector[i]), float(vector[i + half]))
        pair *= amplitude * complex(math.cos(angle), math.sin(angle))
        out[i], out[i + half] = pair.real, pair.imag
    return out


def rotate_all(
    x: Tensor, positions: Tensor, angles: Callable[[int, int], list[float]], amplitude: float = 1.0
) -> Tensor:
    """x (batch, heads, length, head_dim) with angles(head, position)."""
    out = x.double().clone()
    for b in range(x.shape[0]):
        for h in range(x.shape[1]):
            for t in range(x.shape[2]):
                where = int(positions[b % positions.shape[0], t])
                out[b, h, t] = rotate_one(x[b, h, t].double(), angles(h, where), amplitude)
    return out


def banded(
    geometry: Geometry,
    inv_freq: Tensor,
    q: Tensor,
    k: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    relative: Callable[[int, int], float | None],
    amplitude: float = 1.0,
) -> Tensor:
    """Logits (heads, query, key) of q (heads, query, d) and k (kv_heads, key, d) at relative(m, n); None is hidden.

    amplitude ** 2 multiplies the logits. A key after its query is not seen where the attention is causal, and has the
    negative of the mirrored pair's position otherwise.
    """
    frequencies = [float(w) for w in inv_freq]
    logits = torch.full((q.shape[0], q.shape[1], k.shape[1]), -math.inf, dtype=torch.float64)
    for a, m in enumerate(query_positions.tolist()):
        for c, n in enumerate(key_positions.tolist()):
            if m < n and geometry.causal:
                continue
            distance = relative(m, n) if m >= n else -relative(n, m)
            if distance is None:
                continue
            for h in range(q.shape[0]):
                turned = rotate_pairs(q[h, a].double(), frequencies, distance)
                key = k[h * k.shape[0] // q.shape[0], c].double()
                logits[h, a, c] = geometry.scaling * amplitude**2 * (turned @ key)
    return logits


def rotate_pairs(vector: Tensor, frequencies: list[float], distance: float) -> Tensor:
    return rotate_one(vector, [distance * w for w in frequencies])
