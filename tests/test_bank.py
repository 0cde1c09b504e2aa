"""The memory of a stream: nothing changes on the way through the tiers, and every byte is
counted.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from config import MemoryConfig
from memory.chunk import KVChunk, PositionLayout
from memory.host_pool import HostPool, PoolFullError
from memory.kv_memory import KVMemory
from memory.records import NewChunk

LAYERS, HEADS, DIM = 3, 2, 8
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]


def make_chunk(
    index: int, num_tokens: int = 20, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> KVChunk:
    generator = torch.Generator().manual_seed(1000 + index)
    kv = torch.randn(2, LAYERS, HEADS, num_tokens, DIM, generator=generator).to(device, dtype)
    group, place = (
        torch.arange(num_tokens) // 4,
        torch.arange(num_tokens) % 4,
    )  # a text token, then three of a 2 x 2 cell
    visual = place > 0
    stamp = 3 * group + visual
    positions = torch.stack([stamp, stamp + (place == 3), stamp + (place == 2)])
    layout = PositionLayout(positions, int(positions.max()) + 1)
    return KVChunk(
        kv[0],
        kv[1],
        layout,
        visual,
        start_seconds=8.0 * index,
        stop_seconds=8.0 * index + 8.0,
        index=index,
    )


def make_memory(
    num_chunks: int = 0, window_chunks: int = 2, host_bytes: int = 1 << 20, device: str = "cpu"
) -> KVMemory:
    memory = KVMemory(
        MemoryConfig(window_chunks=window_chunks, host_bytes=host_bytes), torch.device(device)
    )
    for index in range(num_chunks):
        memory.append(NewChunk(make_chunk(index, tokens_of(index))))
    return memory


def tokens_of(index: int) -> int:
    return 16 + index % 5


def differs(a: KVChunk, b: KVChunk) -> bool:
    pairs: list[tuple[Tensor, Tensor]] = [
        (a.keys, b.keys),
        (a.values, b.values),
        (a.layout.positions, b.layout.positions),
        (a.visual, b.visual),
    ]
    same = all(torch.equal(left.cpu(), right.cpu()) for left, right in pairs)
    return not same or repr(a) != repr(b) or a.layout.extent != b.layout.extent


@pytest.mark.parametrize("device", DEVICES)
def test_every_chunk_comes_back_as_it_was_appended_whatever_its_tier(device: str) -> None:
    memory = make_memory(13, device=device)
    back = memory.get(range(13))
    assert not any(
        differs(chunk, make_chunk(index, tokens_of(index))) for index, chunk in enumerate(back)
    )
    assert {chunk.keys.device.type for chunk in back} == {device}
    memory.check_integrity()


def test_a_change_of_one_value_in_one_chunk_would_be_noticed() -> None:
    chunk = make_memory(5).get([1])[0]
    assert not differs(chunk, make_chunk(1, tokens_of(1)))
    chunk.values[LAYERS - 1, HEADS - 1, -1, -1] += 1e-3
    assert differs(chunk, make_chunk(1, tokens_of(1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_keys_keep_their_type_and_bits(dtype: torch.dtype) -> None:
    memory = make_memory()
    for index in range(4):
        memory.append(NewChunk(make_chunk(index, dtype=dtype)))
    back = memory.get([0])[0]
    assert back.keys.dtype == dtype
    assert torch.equal(back.keys, make_chunk(0, dtype=dtype).keys)


def test_chunks_come_in_the_order_asked_for_even_twice() -> None:
    memory = make_memory(10)
    assert [chunk.index for chunk in memory.get([9, 3, 4, 8, 3, 0])] == [9, 3, 4, 8, 3, 0]
    assert memory.get([]) == []


def test_the_window_is_the_newest_chunks_and_is_never_copied_twice() -> None:
    memory = make_memory(7, window_chunks=3)
    assert [chunk.index for chunk in memory.window()] == [4, 5, 6]
    assert list(memory.window_indices) == [4, 5, 6]
    assert memory.get([5])[0] is memory.window()[1]


def test_a_short_stream_stays_on_the_device() -> None:
    memory = make_memory(2)
    assert (memory.num_chunks, memory.host_bytes, memory.host_reserved_bytes) == (2, 0, 0)
    memory.check_integrity()


def test_an_empty_memory_is_in_order() -> None:
    memory = make_memory()
    memory.check_integrity()
    assert (memory.window(), memory.spans(), memory.num_tokens, memory.device_bytes) == (
        [],
        [],
        0,
        0,
    )


def test_device_bytes_are_the_same_after_ten_minutes_and_after_an_hour() -> None:
    ten_minutes, hour = make_memory(75), make_memory(452, host_bytes=8 << 20)
    assert sum(c.memory_bytes for c in hour.window()) != sum(
        c.memory_bytes for c in ten_minutes.window()
    )
    assert hour.device_bytes == ten_minutes.device_bytes
    assert hour.host_bytes > 5 * ten_minutes.host_bytes


def test_device_bytes_are_what_the_window_really_takes() -> None:
    memory = make_memory(30)
    storages = [chunk.keys.untyped_storage() for chunk in memory.window()]
    assert len({storage.data_ptr() for storage in storages}) == 2
    assert memory.device_bytes == sum(storage.nbytes() for storage in storages)


def test_a_larger_chunk_than_any_before_gets_a_larger_block() -> None:
    memory = make_memory(4)
    before = memory.device_bytes
    memory.append(NewChunk(make_chunk(4, num_tokens=400)))
    assert memory.device_bytes > before
    assert not differs(memory.get([4])[0], make_chunk(4, num_tokens=400))
    memory.check_integrity()


def test_memory_does_not_keep_the_larger_tensor_alive_that_a_chunk_was_cut_from() -> None:
    chunk = make_chunk(0)
    context = torch.randn(LAYERS, HEADS, 5000, DIM)
    memory = make_memory()
    memory.append(NewChunk(replace(chunk, keys=context[:, :, -20:], values=context[:, :, -20:])))
    assert torch.equal(memory.window()[0].keys, context[:, :, -20:])
    assert memory.window()[0].keys.untyped_storage().nbytes() < context.nbytes / 10


def test_a_chunk_handed_out_keeps_its_values_while_the_stream_goes_on() -> None:
    memory = make_memory(6)
    held = [*memory.window(), *memory.get([0, 1])]
    for index in range(6, 20):
        memory.append(NewChunk(make_chunk(index, tokens_of(index))))
    assert not any(
        differs(chunk, make_chunk(chunk.index, tokens_of(chunk.index))) for chunk in held
    )


def test_the_counts_are_sums_over_chunks() -> None:
    memory = make_memory(11)
    chunks = [make_chunk(index, tokens_of(index)) for index in range(11)]
    assert memory.num_tokens == sum(chunk.num_tokens for chunk in chunks)
    assert memory.host_bytes == sum(chunk.memory_bytes for chunk in chunks[:-2])
    assert memory.spans() == [(chunk.start_seconds, chunk.stop_seconds) for chunk in chunks]


def test_a_full_host_tier_forgets_the_oldest_and_says_so_once() -> None:
    budget = 4 * (make_chunk(0).memory_bytes + make_chunk(0).meta().memory_bytes)
    memory = make_memory(host_bytes=budget)
    for index in range(40):
        memory.append(NewChunk(make_chunk(index)))
        memory.check_integrity()
        assert memory.host_reserved_bytes + memory.search_bytes <= budget
        assert not any(
            differs(c, make_chunk(c.index))
            for c in memory.get(range(memory.first_chunk, index + 1))
        )
    assert memory.num_chunks == 40 and 35 <= memory.first_chunk <= 37
    (notice,) = memory.take_notices()
    assert "the oldest chunks are forgotten" in notice.text
    assert notice.knob == "memory.host_bytes", "which the command line knows by another name"
    assert memory.take_notices() == [] and memory.is_evicted(3) and not memory.is_evicted(39)
    with pytest.raises(IndexError, match="chunk 3 is not among"):
        memory.get([3])


@pytest.mark.parametrize(
    ("chunk", "sentence"),
    [
        (make_chunk(4), "chunk 4 cannot follow 3 chunks"),
        (make_chunk(2), "chunk 2 cannot follow 3 chunks"),
        (replace(make_chunk(3), start_seconds=3.0), "lies before its predecessor"),
        (make_chunk(3, dtype=torch.float16), "is not of this memory"),
    ],
)
def test_a_chunk_that_does_not_follow_is_refused(chunk: KVChunk, sentence: str) -> None:
    memory = make_memory(3)
    with pytest.raises(ValueError, match=sentence):
        memory.append(NewChunk(chunk))
    memory.check_integrity()
    assert memory.num_chunks == 3


@pytest.mark.parametrize("index", [-1, 5])
def test_a_chunk_that_is_not_there_is_not_made_up(index: int) -> None:
    with pytest.raises(IndexError, match=f"chunk {index} is not among the 5"):
        make_memory(5).get([0, index])


def test_the_integrity_check_notices_a_lost_chunk_and_a_wrong_address() -> None:
    lost, moved = make_memory(6), make_memory(6)
    lost._window.popleft()
    moved._addresses[2] += 1
    for memory in (lost, moved):
        with pytest.raises(AssertionError):
            memory.check_integrity()


def test_a_closed_memory_gives_everything_back_and_takes_nothing() -> None:
    memory = make_memory(6)
    memory.close()
    memory.close()
    assert (
        memory.num_chunks,
        memory.device_bytes,
        memory.host_bytes,
        memory.host_reserved_bytes,
    ) == (0, 0, 0, 0)
    with pytest.raises(ValueError, match="closed"):
        memory.append(NewChunk(make_chunk(0)))


@pytest.mark.parametrize("slab_bytes", [7, 64, 1000])
def test_the_pool_returns_what_was_written_across_slab_borders(slab_bytes: int) -> None:
    pool = HostPool(budget_bytes=500, pinned=False, slab_bytes=slab_bytes)
    written = torch.randint(
        0, 256, (500,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    addresses = [pool.write(part) for part in written.split([100, 1, 250, 0, 149])]  # type: ignore[no-untyped-call]
    assert addresses == [0, 100, 101, 351, 351]
    out = torch.zeros(300, dtype=torch.uint8)
    pool.read(60, out)
    assert torch.equal(out, written[60:360])
    assert pool.used_bytes == pool.reserved_bytes == 500


@pytest.mark.parametrize("slab_bytes", [7, 64, 1000])
def test_the_pool_goes_round_when_the_oldest_is_released(slab_bytes: int) -> None:
    pool = HostPool(budget_bytes=200, pinned=False, slab_bytes=slab_bytes)
    kept: list[tuple[int, Tensor]] = []
    for number in range(40):
        data = torch.full((30 + number % 7,), number, dtype=torch.uint8)
        while pool.used_bytes + data.nbytes > 200:
            pool.release(kept.pop(0)[1].nbytes)
        kept.append((pool.write(data), data))
        for address, written in kept:
            out = torch.zeros_like(written)
            pool.read(address, out)
            assert torch.equal(out, written)
        assert pool.used_bytes == sum(written.nbytes for _, written in kept)
        assert pool.used_bytes <= pool.reserved_bytes <= 200
    with pytest.raises(IndexError):
        pool.read(kept[0][0] - 1, torch.zeros(1, dtype=torch.uint8))


def test_the_pool_takes_slabs_as_it_grows_and_stops_at_its_budget() -> None:
    pool = HostPool(budget_bytes=250, pinned=False, slab_bytes=100)
    data = torch.zeros(90, dtype=torch.uint8)
    reserved = []
    for _ in range(2):
        pool.write(data)
        reserved.append(pool.reserved_bytes)
    assert reserved == [100, 200]
    with pytest.raises(PoolFullError):
        pool.write(data)
    assert (pool.used_bytes, pool.reserved_bytes) == (180, 200)
    with pytest.raises(IndexError):
        pool.read(100, data)
