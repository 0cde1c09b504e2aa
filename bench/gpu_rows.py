"""The measurements of `bench.gpu`, one function a row: each yields its tables as soon as they are
complete.

A row asks `bench.has_time()` between measurements and stops early where its time is up. Everything
here runs on random weights of real shapes: costs do not depend on the weights. Needs no video
library: frames are made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.clips import CLIPS, FPS
from bench.ingest import QUESTION, peak_bytes, stock_inputs, two_heads
from bench.machine import now
from bench.rivals.shapes import random_model
from bench.vit_reuse import Runs, subject
from config import AnswerConfig, Config, MemoryConfig, PruneConfig, ReuseConfig
from frames import Frame
from memory.chunk import KVChunk
from memory.records import NewChunk
from models.qwen3_vl import Qwen3VL
from models.video_llm import AnswerRequest, PrefillRequest, VisualGroup, cut_groups
from streaming.engine import Engine
from training.stock_cache import filled_cache

GIB = 1 << 30
MIB = 1 << 20
WAYS = {  # what is switched on: reuse of tower work, pruning
    "plain": ("none", "none"),
    "reuse": ("novelty", "none"),
    "pruning": ("none", "novelty"),
    "reuse and pruning": ("novelty", "novelty"),
}
STAGES = ("novelty and thumbnails", "preprocess", "tower", "prefill", "memory")
Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """One result: plain cells, None where nothing was measured."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Scale:
    """How large everything is measured: real shapes on a GPU, tiny ones in a dry run."""

    shapes: tuple[str, ...]
    towers: tuple[str, ...]
    dtype: torch.dtype
    clip_frames: int
    stock_frames: tuple[int, ...]
    history_frames: tuple[int, ...]
    history_tokens: int  # of a made-up chunk
    answer_tokens: int
    context_tokens: int
    answers: tuple[int, ...]
    limit_frames: int  # nothing larger is tried
    copy_bytes: int
    matmul_size: int
    repeats: int


LARGE = Scale(
    shapes=("qwen3-vl-4b", "qwen3-vl-8b"),
    towers=("qwen3-vl-4b", "siglip-so400m"),
    dtype=torch.bfloat16,
    clip_frames=256,
    stock_frames=(16, 64, 256),
    history_frames=(1_000, 10_000, 36_000),
    history_tokens=200,
    answer_tokens=48,
    context_tokens=4096,
    answers=(1, 4, 16),
    limit_frames=2048,
    copy_bytes=GIB,
    matmul_size=8192,
    repeats=3,
)
TINY = Scale(
    shapes=("demo",),
    towers=("demo",),
    dtype=torch.float32,
    clip_frames=16,
    stock_frames=(8, 16),
    history_frames=(64, 256),
    history_tokens=40,
    answer_tokens=4,
    context_tokens=256,
    answers=(1, 3),
    limit_frames=128,
    copy_bytes=16 * MIB,
    matmul_size=256,
    repeats=1,
)


@dataclass(eq=False)
class Bench:
    """What the rows share: the device, the scale, the model in use and the time that is left for
    the row.
    """

    device: torch.device
    scale: Scale
    deadline_seconds: float = float("inf")  # by time.monotonic
    measured: dict[str, float] = field(default_factory=dict)  # figures that later rows compare with
    _model: tuple[str, Qwen3VL, Any, int] | None = None

    def has_time(self, seconds: float = 0.0) -> bool:
        """Whether the row may go on with something that takes so long."""
        return time.monotonic() + seconds < self.deadline_seconds

    def model(self, shape: str) -> tuple[Qwen3VL, Any, int]:
        """longlook's model, the stock network inside and the side of its frames; one shape is held
        at a time.
        """
        if self._model is None or self._model[0] != shape:
            self.release()
            self._model = shape, *random_model(shape, self.device, self.scale.dtype)
        return self._model[1:]

    def release(self) -> None:
        """Give the model's memory back."""
        self._model = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def seconds(self, run: Callable[[], Any], repeats: int | None = None) -> float:
        """Of the fastest of several runs, the device's work included."""
        taken = []
        for _ in range(repeats or self.scale.repeats):
            started = now(self.device)
            run()
            taken.append(now(self.device) - started)
            if not self.has_time():
                break
        return min(taken)


def measure_device(bench: Bench) -> Iterator[Table]:
    """What the device itself can do: the ceilings that the other rows are held against."""
    scale, device = bench.scale, bench.device
    x = torch.randn(scale.matmul_size, scale.matmul_size, device=device, dtype=scale.dtype)
    _ = x @ x
    flops = 2 * scale.matmul_size**3 / bench.seconds(lambda: x @ x, 10)
    source = torch.randint(0, 255, (scale.copy_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * scale.copy_bytes / bench.seconds(lambda: target.copy_(source), 10)
    bench.measured["bandwidth"] = copied
    bench.measured["flops"] = flops
    rows: list[list[Cell]] = [
        ["matrix product, TFLOP/s", flops / 1e12],
        ["copy on the device, read and written, GB/s", copied / 1e9],
    ]
    for kind, pinned in (("pageable", False), ("pinned", True)):
        if pinned and device.type != "cuda":
            rows += [[f"{kind} host to device, GB/s", None], [f"{kind} device to host, GB/s", None]]
            continue
        host = torch.ones(scale.copy_bytes, dtype=torch.uint8, pin_memory=pinned)
        up, down = _copy(source, host, pinned), _copy(host, source, pinned)
        rows.append([f"{kind} host to device, GB/s", scale.copy_bytes / bench.seconds(up, 3) / 1e9])
        rows.append(
            [f"{kind} device to host, GB/s", scale.copy_bytes / bench.seconds(down, 3) / 1e9]
        )
    yield Table("Ceilings and host copies", ("what", "measured"), rows)


def _copy(target: Tensor, source: Tensor, pinned: bool) -> Callable[[], Any]:
    return lambda: target.copy_(source, non_blocking=pinned)


def measure_equality(bench: Bench) -> Iterator[Table]:
    """A clip in chunks against the stock model on the whole clip: a small seeded model, in both
    number formats.
    """
    reference: Tensor | None = None
    rows: list[list[Cell]] = []
    for dtype in (torch.float32, torch.bfloat16):
        model, network, side = random_model("demo", bench.device, dtype)
        frames = CLIPS["moving camera"](side, 32)
        inputs = stock_inputs(model, frames)
        network.model.rope_deltas = None
        stock = network(**inputs, logits_to_keep=1).logits[0, -1].float()
        reference = stock if reference is None else reference  # fp32 comes first
        chunks = _prefill_all(model, frames)
        ours = model.first_logits(QUESTION, [model.prefix(), *chunks])
        control = model.first_logits(QUESTION, [model.prefix(), *chunks[1:]])
        rows.append(
            [
                str(dtype).removeprefix("torch."),
                _difference(ours, stock),
                _difference(stock, reference),
                _difference(ours, reference),
                bool(ours.argmax() == stock.argmax()),
                _difference(control, stock),
            ]
        )
    head = (
        "dtype",
        "ours - stock",
        "stock - stock in fp32",
        "ours - stock in fp32",
        "same token",
        "control: a chunk left out",
    )
    note = "Largest difference of logits, in parts of the largest logit."
    yield Table("Chunked prefill against one stock forward", head, rows, note)
    yield _attention_kernels(bench)


def _prefill_all(model: Qwen3VL, frames: Sequence[Frame]) -> list[KVChunk]:
    """Chunks of eight frames, each seeing all before it, as one forward would."""
    chunks: list[KVChunk] = []
    for start in range(0, len(frames), 8):
        groups = model.encode(frames[start : start + 8])
        chunks.append(model.prefill(groups, [model.prefix(), *chunks], len(chunks)))
    return chunks


def _difference(logits: Tensor, reference: Tensor) -> float:
    return float((logits - reference).abs().max() / reference.abs().max())


def _attention_kernels(bench: Bench) -> Table:
    """Which of torch's attention kernels can run the prefill of a chunk that sees others, and which
    one does.
    """
    model, _, side = random_model("demo", bench.device, bench.scale.dtype)
    frames = CLIPS["moving camera"](side, 16)
    first = model.prefill(model.encode(frames[:8]), [model.prefix()], 0)
    groups = model.encode(frames[8:])

    def prefill() -> None:
        model.prefill(groups, [model.prefix(), first], 1)

    rows: list[list[Cell]] = []
    for backend in (
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ):
        with sdpa_kernel([backend]):
            try:
                prefill()
                rows.append([backend.name, "runs"])
            except RuntimeError as error:
                rows.append([backend.name, f"refused: {str(error).splitlines()[0][:80]}"])
    rows.append(["taken by default", ", ".join(_kernels_of(prefill)) or "none found"])
    return Table("Attention kernels for a chunk behind others", ("kernel", "answer"), rows)


def _kernels_of(run: Callable[[], None]) -> list[str]:
    """The attention operators that a run calls, by torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    names = {event.key for event in profile.key_averages()}
    return sorted(
        name
        for name in names
        if "attention" in name and name != "aten::scaled_dot_product_attention"
    )


def measure_ingest(shape: int) -> Callable[[Bench], Iterator[Table]]:
    """Frames per second of a whole session, beside the stock model; `shape` numbers the scale's
    shapes.
    """

    def row(bench: Bench) -> Iterator[Table]:
        if shape >= len(bench.scale.shapes):
            return
        name = bench.scale.shapes[shape]
        model, network, side = bench.model(name)
        _warm_up(model, network, side)
        for clip, make in CLIPS.items():
            if not bench.has_time():
                return
            frames = make(side, bench.scale.clip_frames)
            rows = _stock_rows(bench, model, network, frames)
            best = max((row[2] for row in rows if isinstance(row[2], float)), default=0.0)
            for way in WAYS:
                if bench.has_time():
                    rows.append(_watch_row(bench, model, frames, way, best))
            head = (
                "way",
                "frames",
                "frames/s",
                "against the best stock",
                "tokens",
                "device peak GiB",
                *(f"{stage} ms/frame" for stage in STAGES),
            )
            note = (
                "Fastest of several runs over frames in memory: no decoding. Stock: vision "
                "and LLM each in one batch "
                "over all frames. Stages come from a run of their own that waits for the "
                "device at every border."
            )
            yield Table(f"Ingest, {name}, {clip}", head, rows, note)

    return row


def _warm_up(model: Qwen3VL, network: Any, side: int) -> None:
    frames = CLIPS["hard cuts"](side, 8)
    model.prefill(model.encode(frames), [model.prefix()], 0)
    network.model.rope_deltas = None
    network(**stock_inputs(model, frames), logits_to_keep=1)


def _stock_rows(
    bench: Bench, model: Qwen3VL, network: Any, frames: Sequence[Frame]
) -> list[list[Cell]]:
    """The stock model with the first 16, 64, ... frames in one forward each."""
    rows: list[list[Cell]] = []
    for count in bench.scale.stock_frames:
        if not bench.has_time():
            break

        def forward(count: int = count) -> None:
            network.model.rope_deltas = None
            network(**stock_inputs(model, frames[:count]), use_cache=True, logits_to_keep=1)

        peak_bytes(bench.device)
        with suppress(torch.OutOfMemoryError):
            seconds = bench.seconds(forward)
            tokens = int(stock_inputs(model, frames[:count])["input_ids"].shape[1])
            peak = peak_bytes(bench.device) / GIB
            rows.append(
                ["stock", count, count / seconds, None, tokens, peak, *[None] * len(STAGES)]
            )
    return rows


def _watch_row(
    bench: Bench, model: Qwen3VL, frames: Sequence[Frame], way: str, best: float
) -> list[Cell]:
    reuse, prune = WAYS[way]
    config = Config(reuse=ReuseConfig(reuse), prune=PruneConfig(prune))
    engine = Engine(model, two_heads(model), config)
    tokens = 0

    def watch() -> None:
        nonlocal tokens
        session = engine.open()
        for _ in session.watch(frames, True):
            pass
        tokens = session.stats.tokens
        session.close()

    peak_bytes(bench.device)
    seconds = bench.seconds(watch)
    peak = peak_bytes(bench.device) / GIB
    spent = _stages(bench, engine, frames)
    rate = len(frames) / seconds
    stages = [1000 * spent[stage] / len(frames) for stage in STAGES]
    return [way, len(frames), rate, rate / best if best else None, tokens, peak, *stages]


class StageClock:
    """Seconds by stage, taken around methods of a model and a session; waits for the device at
    every border.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.spent = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def around(self, owner: Any, name: str, stage: str) -> Iterator[None]:
        """Counts the calls of a method while the block runs."""
        method = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            started = now(self._device)
            result = method(*arguments, **options)
            self.spent[stage] += now(self._device) - started
            return result

        setattr(owner, name, timed)
        try:
            yield
        finally:
            delattr(owner, name)


def _stages(bench: Bench, engine: Engine, frames: Sequence[Frame]) -> dict[str, float]:
    """Seconds of each stage over the whole clip."""
    clock = StageClock(bench.device)
    model: Any = engine.model
    session: Any = engine.open()
    with (
        clock.around(model, "cut_patches", "preprocess"),
        clock.around(model, "encode_groups", "tower"),
        clock.around(model, "prefill_batch", "prefill"),
        clock.around(session.memory, "append_all", "memory"),
    ):
        started = now(bench.device)
        for _ in session.watch(frames, True):
            pass
        total = now(bench.device) - started
    session.close()
    clock.spent["novelty and thumbnails"] = total - sum(clock.spent.values())
    return clock.spent


def measure_history(bench: Bench) -> Iterator[Table]:
    """First token and device bytes with a long history, from the window alone and with recall."""
    scale = bench.scale
    model, _, side = bench.model(scale.shapes[0])
    rows: list[list[Cell]] = []
    for tokens, lengths in (
        (None, scale.history_frames[:1]),
        (scale.history_tokens, scale.history_frames),
    ):
        session: Any = None
        for num_frames in lengths:
            if not bench.has_time():
                break
            if session is None:
                template = _template(bench, model, side, tokens)
                memory = MemoryConfig(kv_bits=8, host_bytes=64 * GIB)
                session = Engine(model, two_heads(model), Config(memory=memory)).open()
            filled = _fill(bench, session, template, num_frames // memory.chunk_frames)
            rows.append(
                [
                    filled * memory.chunk_frames,
                    filled,
                    template.num_tokens,
                    *_first_tokens(bench, session),
                ]
            )
        if session is not None:
            session.close()
    head = (
        "frames",
        "chunks",
        "tokens/chunk",
        "window only ms",
        "context tokens",
        "with recall ms",
        "of it search ms",
        "context tokens",
        "device MiB",
        "host GiB",
    )
    note = (
        "Chunks after the first are made up: the same number of tokens, random keys. The "
        "first line has whole chunks, "
        "the others as many tokens as pruning leaves of a calm stream, in 8 bits on the "
        "host. Medians."
    )
    yield Table(f"First token by history, {scale.shapes[0]}", head, rows, note)


def _template(bench: Bench, model: Qwen3VL, side: int, tokens: int | None) -> KVChunk:
    """A chunk of 16 frames: as prefilled, or with random keys and so many tokens."""
    groups = model.encode(CLIPS["static camera"](side, 16))
    if tokens is not None:
        kept = torch.arange(max(1, tokens // len(groups) - 12))  # a time stamp takes about so many
        groups = [
            replace(
                group,
                embeddings=group.embeddings[: len(kept)],
                deepstack=tuple(level[: len(kept)] for level in group.deepstack),
                kept=kept,
            )
            for group in groups
        ]
    return model.prefill(groups, [model.prefix()], 0)


def _fill(bench: Bench, session: Any, template: KVChunk, num_chunks: int) -> int:
    """Appends made-up chunks until there are so many or the row's time is up; the number there is
    then.
    """
    memory = session.memory
    seconds = 16 / FPS
    while memory.num_chunks < num_chunks and bench.has_time():
        number = memory.num_chunks
        start = number * seconds
        chunk = replace(
            template,
            keys=torch.randn_like(template.keys),
            index=number,
            start_seconds=start,
            stop_seconds=start + seconds - 1 / FPS,
            group_starts=tuple(start + k * seconds / 8 for k in range(8)),
        )
        memory.append(NewChunk(chunk, session._profile.keys_of(chunk)))
    return int(memory.num_chunks)


def _first_tokens(bench: Bench, session: Any) -> list[Cell]:
    """Milliseconds to the first token both ways, and what is held meanwhile."""
    model: Qwen3VL = session._model
    one = AnswerConfig(max_new_tokens=1)

    def answer(context: Sequence[KVChunk]) -> int:
        next(model.answer_tokens(QUESTION, context, (), one), None)
        return sum(chunk.num_tokens for chunk in context)

    def timed(run: Callable[[], Any]) -> tuple[float, Any]:
        taken = []
        for _ in range(2 + bench.scale.repeats):
            started = now(bench.device)
            result = run()
            taken.append(1000 * (now(bench.device) - started))
        return median(taken), result

    window_ms, window_tokens = timed(lambda: answer([model.prefix(), *session.memory.window()]))
    recall_ms, recall_tokens = timed(lambda: answer(session.retrieve(QUESTION).context))
    search_ms, _ = timed(lambda: session._retriever.plan(QUESTION, session._now(), ()))
    held = session.memory.device_bytes / MIB, session.memory.host_bytes / GIB
    return [window_ms, window_tokens, recall_ms, search_ms, recall_tokens, *held]


def measure_decode(shape: int) -> Callable[[Bench], Iterator[Table]]:
    """Tokens per second of answers under way, against the time that reading the weights takes."""

    def row(bench: Bench) -> Iterator[Table]:
        if shape >= len(bench.scale.shapes):
            return
        name = bench.scale.shapes[shape]
        model, network, _ = bench.model(name)
        context = [model.prefix(), _context_chunk(bench, model)]
        layers = network.model.language_model.layers
        weights = sum(p.nbytes for p in layers.parameters()) + network.lm_head.weight.nbytes
        rows: list[list[Cell]] = []
        for count in bench.scale.answers:
            if not bench.has_time():
                break
            kv_bytes = count * sum(chunk.memory_bytes for chunk in context)
            floor = (weights + kv_bytes) / bench.measured.get("bandwidth", float("nan"))
            by_turns = _decode_by_turns(bench, model, context, count)
            stock = _decode_stock(bench, model, network, context, count)
            batched = _decode_batched(bench, model, context, count)
            rows.append(
                [
                    count,
                    by_turns,
                    stock,
                    batched,
                    batched / by_turns,
                    batched / stock,
                    count / floor,
                    batched * floor / count,
                ]
            )
        head = (
            "answers at once",
            "one by one, by turns, tokens/s",
            "stock, one batch, tokens/s",
            "longlook, one batch, tokens/s",
            "against one by one",
            "against stock",
            "floor of weights and KV over bandwidth, tokens/s",
            "share of the floor",
        )
        note = (
            f"Context of {sum(chunk.num_tokens for chunk in context)} tokens; tokens/s of all "
            f"answers together."
        )
        yield Table(f"Decoding, {name}", head, rows, note)

    return row


def _context_chunk(bench: Bench, model: Qwen3VL) -> KVChunk:
    """A made-up chunk of text positions that fills the context."""
    n = bench.scale.context_tokens
    shape = (model.num_layers, model.num_kv_heads, n, model.head_dim)
    keys, values = torch.randn(2, *shape, device=bench.device, dtype=bench.scale.dtype)
    prefix = model.prefix()
    layout = replace(prefix.layout, positions=torch.arange(n).expand(3, n).contiguous(), extent=n)
    return replace(
        prefix,
        keys=keys,
        values=values,
        layout=layout,
        visual=torch.zeros(n, dtype=torch.bool),
        index=0,
    )


def _decode_by_turns(bench: Bench, model: Qwen3VL, context: Sequence[KVChunk], count: int) -> float:
    """Answers that know nothing of each other: one token of each in turn."""
    tokens = bench.scale.answer_tokens
    options = AnswerConfig(max_new_tokens=tokens + 1)
    answers = [model.answer_tokens(QUESTION, context, (), options) for _ in range(count)]
    for answer in answers:
        next(answer, None)  # the first token is the question's prefill
    started = now(bench.device)
    num_tokens = sum(len(list(islice(answer, 1))) for _ in range(tokens) for answer in answers)
    return max(1, num_tokens) / (now(bench.device) - started)


def _decode_batched(bench: Bench, model: Qwen3VL, context: Sequence[KVChunk], count: int) -> float:
    """The same answers as one batch over caches allocated ahead."""
    tokens = bench.scale.answer_tokens
    options = AnswerConfig(max_new_tokens=tokens + 2)
    batch = model.answer_batch()
    for _ in range(count):
        batch.add_all([AnswerRequest(QUESTION, context, (), options)])
    batch.step()
    started = now(bench.device)
    num_tokens = 0
    for _ in range(tokens):
        num_tokens += len(batch)
        batch.step()
    return max(1, num_tokens) / (now(bench.device) - started)


def _decode_stock(
    bench: Bench, model: Qwen3VL, network: Any, context: Sequence[KVChunk], count: int
) -> float:
    """The stock text model with its own growing cache, a batch of contexts of one length."""
    text = network.model.language_model
    layers = range(model.num_layers)
    keys = [
        torch.cat([chunk.keys[layer] for chunk in context], 1).expand(count, -1, -1, -1)
        for layer in layers
    ]
    values = [
        torch.cat([chunk.values[layer] for chunk in context], 1).expand(count, -1, -1, -1)
        for layer in layers
    ]
    # its keys are not rotated, which costs nothing in decoding
    cache = filled_cache(zip(keys, values, strict=True))
    position = sum(chunk.layout.extent for chunk in context)
    tokens = torch.zeros(count, 1, dtype=torch.long, device=bench.device)

    def step(at: int) -> None:
        nonlocal tokens
        positions = torch.full((3, count, 1), at, device=bench.device)
        output = text(
            inputs_embeds=text.embed_tokens(tokens),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        tokens = network.lm_head(output.last_hidden_state).argmax(-1)

    step(position)
    started = now(bench.device)
    for k in range(bench.scale.answer_tokens):
        step(position + 1 + k)
    return count * bench.scale.answer_tokens / (now(bench.device) - started)


def measure_limits(bench: Bench) -> Iterator[Table]:
    """The largest tower batch, chunk and batch of chunks before memory ends."""
    scale = bench.scale
    model, _, side = bench.model(scale.shapes[0])
    frames = CLIPS["moving camera"](side, 2)
    group = model.encode(frames)[0]
    groups = cut_groups(frames, model)
    patches, grid = model._on_device(groups), groups[0].grid

    def tower(count: int) -> None:
        model._tower.encode(patches.expand(count // 2, -1, -1), grid)

    def chunk(count: int) -> None:
        model.prefill(_groups(group, count // 2), [model.prefix()], 0)

    def together(count: int) -> None:
        runs = [_groups(group, 8)] * (count // 16)
        model.prefill_batch([PrefillRequest(runs, [model.prefix()], [], 2, 0)])

    rows: list[list[Cell]] = []
    most = scale.limit_frames
    for what, run, largest in (
        ("frames in one tower batch", tower, most),
        ("frames in one chunk", chunk, most),
        # the mask of a pass is written out, tokens x tokens on the host, so this one ends earlier
        ("frames in 16-frame chunks of one pass", together, most // 8),
    ):
        rows.append([what, *_largest(bench, run, largest)])
    head = ("what", "largest", "seconds", "frames/s", "peak GiB", "ended by")
    yield Table(
        f"Largest sizes, {scale.shapes[0]}",
        head,
        rows,
        "Doubled from 16 frames on until one fails.",
    )


def _groups(group: VisualGroup, count: int) -> list[VisualGroup]:
    step = 2 / FPS
    return [
        replace(
            group,
            pts_seconds=k * step + 0.25,
            start_seconds=k * step,
            stop_seconds=k * step + 1 / FPS,
        )
        for k in range(count)
    ]


def _largest(bench: Bench, run: Callable[[int], None], most: int) -> list[Cell]:
    """The largest of 16, 32, 64, ... that runs: its size, seconds, rate, peak and what ended the
    search.
    """
    best: list[Cell] = [None, None, None, None]
    count, seconds = 16, 0.0
    while count <= most:
        if not bench.has_time(4 * seconds):  # attention grows with the square
            return [*best, "time"]
        peak_bytes(bench.device)
        try:
            seconds = bench.seconds(lambda count=count: run(count), 1)  # type: ignore[misc]
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return [*best, f"no memory for {count}"]
        best = [count, seconds, count / seconds, peak_bytes(bench.device) / GIB]
        count *= 2
    return [*best, "the largest that is tried"]


def measure_towers(bench: Bench) -> Iterator[Table]:
    """Reuse of a tower's work against the stock tower in batches."""
    bench.release()
    for name in bench.scale.towers:
        rows: list[list[Cell]] = []
        tower = subject(name, bench.device, bench.scale.dtype)
        for clip, make in CLIPS.items():
            if not bench.has_time():
                break
            frames = make(448, min(64, bench.scale.clip_frames))
            row = Runs(tower, frames, ReuseConfig("novelty")).row(clip, 1 + bench.scale.repeats)
            rows.append(
                [
                    clip,
                    row.frames,
                    row.whole_ms,
                    row.reused_ms,
                    row.ratio,
                    row.measuring_ms,
                    row.whole_gmacs / row.reused_gmacs if row.reused_gmacs else None,
                    row.cosine,
                ]
            )
        head = (
            "clip",
            "frames",
            "stock ms/frame",
            "reuse ms/frame",
            "faster",
            "of it measuring",
            "fewer multiply-adds",
            "cosine to stock",
        )
        note = (
            "Eager kernels; the code has no replayed graphs. Random weights: the cosine tells "
            "little."
        )
        yield Table(f"Reuse in the tower, {name}", head, rows, note)
