"""A bias as extra columns of q and k: any attention kernel adds it for us, with no mask."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["folded"]


def folded(
    query: Tensor, key: Tensor, value: Tensor, columns: tuple[Tensor, Tensor], scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """q and k with the columns appended and v padded to the same size, as flash kernels want it.

    Args:
        columns: for q (batch or 1, heads, query, c), in nats, and for k (batch or 1, kv_heads or 1, key, c).
        scaling: the factor on q.k that the kernel applies; the columns of q are divided by it.
    """
    q_columns, k_columns = columns[0] / scaling, columns[1]
    if query.dtype.itemsize < 4:  # what rounding takes from a column of q is a column of its own
        rest = q_columns - q_columns.to(query.dtype).float()
        q_columns, k_columns = torch.cat((q_columns, rest), dim=-1), torch.cat((k_columns, k_columns), dim=-1)
    batch, _, length, dim = query.shape
    pad = -(dim + q_columns.shape[-1]) % 8
    q_extra = torch.nn.functional.pad(q_columns, (0, pad)).expand(batch, query.shape[1], length, -1)
    k_extra = torch.nn.functional.pad(k_columns, (0, pad)).expand(batch, key.shape[1], key.shape[2], -1)
    query = torch.cat((query, q_extra.to(query.dtype)), dim=-1)
    key = torch.cat((key, k_extra.to(key.dtype)), dim=-1)
    return query, key, torch.nn.functional.pad(value, (0, query.shape[-1] - value.shape[-1]))
