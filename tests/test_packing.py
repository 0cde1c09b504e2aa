"""Keys and values in 8 bits: never farther off than half a step of their own vector, and every byte
is counted.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from config import MemoryConfig
from memory.kv_codec import OVER_CHANNELS, OVER_TOKENS, KVFormat, rounded
from memory.kv_memory import KVMemory
from memory.records import NewChunk
from tests.test_bank import differs, make_chunk

LAYERS, HEADS, TOKENS, DIM = 3, 2, 37, 16
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make_kv(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys with a few large channels far from zero, as real ones have them, and values with a few
    large tokens.
    """
    kv = torch.randn(2, LAYERS, HEADS, TOKENS, DIM, generator=torch.Generator().manual_seed(7))
    kv[0, ..., 3] = 40 + 9 * kv[0, ..., 3]
    kv[0, ..., 9] = -200 + 0.01 * kv[0, ..., 9]
    kv[1, :, :, 5] *= 30
    return kv[0].to(dtype), kv[1].to(dtype)


def back(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    form = KVFormat.of(keys, 8)
    return form.unpack(form.pack(keys, values), keys.shape[2])


def bound(x: Tensor, over: int) -> Tensor:
    """Half a step of each vector as its range says, plus the rounding of float32 and of the type
    that comes back.
    """
    exact = x.double()
    half_steps = (exact.amax(over, keepdim=True) - exact.amin(over, keepdim=True)) / 254 / 2
    roundings = (
        exact.abs() * torch.finfo(x.dtype).eps + 4 * exact.abs().amax(over, keepdim=True) * 2**-23
    )
    return half_steps * (1 + 1e-5) + roundings + half_steps * torch.finfo(x.dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_farther_off_than_half_a_step_of_its_channel_or_token(
    dtype: torch.dtype,
) -> None:
    kv = make_kv(dtype)
    for x, rough, over in zip(kv, back(*kv), (OVER_TOKENS, OVER_CHANNELS), strict=True):
        assert (rough.dtype, rough.shape) == (dtype, x.shape)
        error = (rough.double() - x.double()).abs()
        assert bool((error <= bound(x, over)).all())
        assert float((error / bound(x, over)).max()) > 0.5, (
            "a bound that is never approached bounds nothing"
        )


def test_scales_the_other_way_round_would_break_the_bound() -> None:
    keys, values = make_kv(torch.float32)
    for x, over, wrong in (
        (keys, OVER_TOKENS, OVER_CHANNELS),
        (values, OVER_CHANNELS, OVER_TOKENS),
    ):
        middle, step, steps = rounded(x, wrong)
        error = (middle + step * steps - x).abs().double()
        assert bool((error > 2 * bound(x, over)).any())


@pytest.mark.parametrize("value", [0.0, 3.3, -1e30, 1e-40])
def test_a_vector_without_a_range_comes_back_as_it_was(value: float) -> None:
    x = torch.full((1, 1, 5, 4), value)
    for rough in back(x, x):
        assert torch.allclose(rough, x, rtol=1e-6, atol=1e-38)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [16, 8])
def test_the_bytes_are_those_foretold(dtype: torch.dtype, bits: int) -> None:
    for tokens in (1, 2, TOKENS):
        keys, values = (x[:, :, :tokens] for x in make_kv(dtype))
        form = KVFormat.of(keys, bits)
        assert form.pack(keys, values).nbytes == form.num_bytes(tokens)
    as_computed = form.as_computed.num_bytes(1000)
    assert as_computed == 2 * LAYERS * HEADS * 1000 * DIM * dtype.itemsize
    if bits == 8:
        numbers = 2 * LAYERS * HEADS * 1000 * DIM
        assert form.num_bytes(1000) == numbers + 4 * 2 * LAYERS * HEADS * (1000 + DIM)


def test_real_shapes_take_little_more_than_half_of_bfloat16() -> None:
    form = KVFormat(36, 8, 128, torch.bfloat16, 8)
    assert 0.5 < form.num_bytes(784) / form.as_computed.num_bytes(784) < 0.53


def test_as_computed_every_bit_stays() -> None:
    keys, values = make_kv(torch.bfloat16)
    form = KVFormat.of(keys, 16)
    assert all(map(torch.equal, form.unpack(form.pack(keys, values), TOKENS), (keys, values)))


def test_the_host_holds_8_bits_and_the_window_what_was_computed() -> None:
    memory = KVMemory(
        MemoryConfig(window_chunks=2, kv_bits=8, host_bytes=1 << 20), torch.device("cpu")
    )
    chunks = [make_chunk(index) for index in range(6)]
    for chunk in chunks:
        memory.append(NewChunk(chunk))
        memory.check_integrity()
    assert (
        memory.host_bytes
        == 4 * KVFormat.of(chunks[0].keys, 8).num_bytes(20)
        < 4 * chunks[0].memory_bytes / 2
    )
    found = memory.get(range(6))
    assert [differs(a, b) for a, b in zip(found, chunks, strict=True)] == [True] * 4 + [False] * 2
    for a, b in zip(found, chunks, strict=True):
        keys, values = back(b.keys, b.values)
        if a.index < 4:
            assert torch.equal(a.keys, keys) and torch.equal(a.values, values)
            assert torch.equal(a.layout.positions, b.layout.positions)
