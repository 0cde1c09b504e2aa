"""How keys and values stand as bytes on host and disk: as they were computed, or rounded to 8 bits.

Rounded, a vector is its middle, a step, and for each element a whole number of steps from -127 to
127. For keys a vector is one channel over all tokens of the chunk, because a few channels of raw
keys are far larger than the others; for values it is one token over all channels (KIVI, arXiv
2402.02750).

    as computed   keys, values [2, layers, kv_heads, n, head_dim]
    8 bits        middle, step of keys [2, layers, kv_heads, head_dim]
                  | of values [2, layers, kv_heads, n] | both, int8

Knows nothing of tiers, files or chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memory.records import Kind

AS_COMPUTED = 16
MOST_STEPS = 127  # to either side of the middle
SCALE_BYTES = 4  # middles and steps are float32
OVER_TOKENS, OVER_CHANNELS = 2, 3  # dimensions of [layers, kv_heads, n, head_dim]


@dataclass(frozen=True)
class KVFormat:
    """What the keys and values of a stream's chunks have in common, and how they are packed.

    dtype: that they are computed in. bits: 8, or 16 for "as computed", whatever the dtype is.
    head_dim is even, as it is wherever keys are rotated; so packed chunks side by side stay
    aligned.
    """

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    bits: int

    @classmethod
    def of(cls, keys: Tensor, bits: int) -> KVFormat:
        """keys: [layers, kv_heads, n, head_dim]."""
        layers, kv_heads, _, head_dim = keys.shape
        return cls(layers, kv_heads, head_dim, keys.dtype, bits)

    @classmethod
    def of_kind(cls, kind: Kind, bits: int) -> KVFormat:
        return cls(kind.layers, kind.kv_heads, kind.head_dim, kind.torch_dtype, bits)

    @property
    def as_computed(self) -> KVFormat:
        """The same, not rounded."""
        return replace(self, bits=AS_COMPUTED)

    def num_bytes(self, num_tokens: int) -> int:
        """Bytes of so many tokens, packed."""
        numbers = 2 * self.layers * self.kv_heads * num_tokens * self.head_dim
        if self.bits == AS_COMPUTED:
            return numbers * self.dtype.itemsize
        return SCALE_BYTES * sum(self._num_scales(num_tokens)) + numbers

    def pack(self, keys: Tensor, values: Tensor) -> Tensor:
        """Keys and values [layers, kv_heads, n, head_dim] as uint8 [num_bytes], on their device."""
        if self.bits == AS_COMPUTED:
            return _joined([keys, values])
        of_keys, of_values = rounded(keys, OVER_TOKENS), rounded(values, OVER_CHANNELS)
        return _joined([*of_keys[:2], *of_values[:2], of_keys[2], of_values[2]])

    def unpack(self, data: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Keys and values of packed bytes, in `dtype` on their device; as computed they are views
        of the bytes.

        Rounded ones are off by at most half a step, that is 1/508 of the range of their vector,
        before they are rounded to `dtype`.
        """
        shape = (2, self.layers, self.kv_heads, num_tokens, self.head_dim)
        if self.bits == AS_COMPUTED:
            keys, values = data.view(self.dtype).view(shape)
            return keys, values
        sizes = self._num_scales(num_tokens)
        scales, numbers = data[: SCALE_BYTES * sum(sizes)], data[SCALE_BYTES * sum(sizes) :]
        heads = (2, self.layers, self.kv_heads)
        of_keys, of_values = scales.view(torch.float32).split(sizes)  # type: ignore[no-untyped-call]
        steps = numbers.view(torch.int8).view(shape).float()
        middle, step = of_keys.view(*heads, 1, self.head_dim)
        keys = torch.addcmul(middle, step, steps[0])
        middle, step = of_values.view(*heads, num_tokens, 1)
        values = torch.addcmul(middle, step, steps[1])
        return keys.to(self.dtype), values.to(self.dtype)

    def _num_scales(self, num_tokens: int) -> list[int]:
        """Middles and steps of the keys, and of the values."""
        heads = 2 * self.layers * self.kv_heads
        return [heads * self.head_dim, heads * num_tokens]


def rounded(x: Tensor, over: int) -> tuple[Tensor, Tensor, Tensor]:
    """Middle and step of every vector of x along dimension `over`, float32 of size 1 there, and the
    steps, int8.

    |middle + steps * step - x| <= step / 2, where step = (max - min) / 254; float32 adds its own
    rounding.
    """
    exact = x.float()
    low, high = exact.aminmax(dim=over, keepdim=True)
    middle = (low + high) / 2
    step = ((high - low) / (2 * MOST_STEPS)).clamp(min=torch.finfo(torch.float32).tiny)
    steps = ((exact - middle) / step).round().clamp(-MOST_STEPS, MOST_STEPS)
    return middle, step, steps.to(torch.int8)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.contiguous().flatten().view(torch.uint8) for part in parts])
