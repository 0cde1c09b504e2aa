"""A stock cache with given contents, for passes that attend over keys from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from transformers import DynamicCache


def filled_cache(layers: Iterable[tuple[Tensor, Tensor]]) -> DynamicCache:
    """A stock cache that holds the rotated keys and the values of every layer, [B, kv_heads, n,
    head_dim] each.
    """
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(layers):
        cache.update(keys, values, layer)
    return cache
