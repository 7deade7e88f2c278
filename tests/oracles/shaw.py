import torch

VARIANTS = [
    {},
    {"position_embedding_type": "relative_key_query"},
    {"max_distance": 3},
    {"max_distance": 5, "position_embedding_type": "relative_key_query"},
]


def oracle(method, geometry, weights, q, k, queries, keys):
    """Logits (heads, query, key) of q (heads, query, d) and k (kv_heads, key, d)."""
    table, largest = weights["table"].double(), method.max_distance
    found = torch.zeros(geometry.heads, len(queries), len(keys), dtype=torch.float64)
    for h in range(geometry.heads):
        for i, m in enumerate(queries):
            for j, n in enumerate(keys):
                query, key = q[h, i].double(), k[h * k.shape[0] // q.shape[0], j].double()
                row = table[min(max(m - n, -largest), largest) + largest]
                value = query @ key + query @ row
                if method.position_embedding_type == "relative_key_query":
                    value = value + key @ row
                found[h, i, j] = geometry.scaling * value
    return found
