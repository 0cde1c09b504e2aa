"""What reuse in the vision tower and pruning of its tokens save together on a real clip, beside the
stock model.

    python -m bench.savings
    python -m bench.savings --video FILE
    python -m bench.savings --shape 4b-tower-0.6b --frames 32

All rows see the same frames in one run: the stock model in one forward over the whole clip, then
longlook chunk by
chunk: plain, with reuse, with pruning, with both, and with both and what is kept rounded to 8 bits.
Weights are random: costs do not depend on them. Multiply-adds are counted in a run of their own; of
attention all pairs, seen or masked. Writes JSON and Markdown into `bench/results/`; exits with 1
where a target is missed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
from rich.progress import track

from bench.clips import FPS, read_clip, static_camera
from bench.ingest import stock_inputs
from bench.machine import counted, describe, now, save
from bench.report import table
from bench.rivals.shapes import SHAPES, random_model
from config import Config, PruneConfig, ReuseConfig
from frames import Frame
from keyframes.chunk_builder import build_chunks
from memory.chunk import KVChunk
from memory.kv_codec import AS_COMPUTED, KVFormat
from models.checkpoint import recommended_settings
from models.qwen3_vl import Qwen3VL
from models.video_llm import num_visual_tokens
from streaming.batching import BATCH_FRAMES, batch_chunks, max_pass_tokens
from streaming.ingest import Ingest, PrefillWork, run_prefills

T = TypeVar("T")
RESULTS = Path(__file__).parent / "results"
REACH = 2  # chunks that a new one sees
FASTER, KV_SHARE = 4.0, 0.25  # targets: as fast as the stock model, of the plain KV
GIB = 1 << 30


@dataclass(frozen=True)
class Row:
    """One way through the clip; multiply-adds (giga) and bytes are of the whole of it."""

    way: str
    frames: int
    seconds: float
    gmacs: float
    tokens: int
    kv_bytes: int

    @property
    def frames_per_second(self) -> float:
        return self.frames / self.seconds

    @property
    def kv_gib_per_hour(self) -> float:
        return self.kv_bytes / GIB * 3600 * FPS / self.frames


WAYS = {  # reuse, pruning, bits that keys and values are kept in
    "plain": ("none", "none", 16),
    "reuse": ("novelty", "none", 16),
    "pruning": ("none", "novelty", 16),
    "both": ("novelty", "novelty", 16),
    "both, 8 bits": ("novelty", "novelty", 8),
}


def own_settings(shape: str) -> Config:
    """What a model of this shape does by default."""
    return Config().overridden(recommended_settings(shape) if shape == "demo" else {})


def watched(
    model: Qwen3VL, parts: Sequence[Sequence[Frame]], reuse: ReuseConfig, prune: PruneConfig
) -> list[KVChunk]:
    """The chunks of a clip, as a session makes those of a file."""
    ingest = Ingest(model, Config(reuse=reuse, prune=prune))
    chunks: list[KVChunk] = []
    frames = [frame for part in parts for frame in part]
    built = build_chunks(frames, ingest.chunk_builder(is_live=False), ingest.measure)
    max_chunks, max_tokens = (
        max(1, BATCH_FRAMES // len(parts[0])),
        max_pass_tokens(model.device.type),
    )
    for batch in batch_chunks(built, max_chunks, partial(num_visual_tokens, model), max_tokens):
        work = PrefillWork(
            ingest, ingest.prepare(batch), [model.prefix()], chunks[-REACH:], REACH, len(chunks)
        )
        chunks += [made.chunk for made in run_prefills(model, [work])[0] if made.chunk is not None]
    return chunks


def ours(
    model: Qwen3VL,
    frames: Sequence[Frame],
    chunk_frames: int,
    way: str,
    budget: float,
    repeats: int,
) -> Row:
    parts = [frames[k : k + chunk_frames] for k in range(0, len(frames), chunk_frames)]
    reuse, prune, bits = WAYS[way]

    def watch() -> tuple[int, int]:
        chunks = watched(model, parts, ReuseConfig(reuse), PruneConfig(prune, budget))
        return sum(chunk.num_tokens for chunk in chunks), sum(
            kept_bytes(chunk, bits) for chunk in chunks
        )

    (tokens, held), seconds, gmacs = fastest(model, watch, repeats)
    return Row(way, len(frames), seconds, gmacs, tokens, held)


def kept_bytes(chunk: KVChunk, bits: int) -> int:
    """Of a chunk's keys and values as computed, or packed for host and disk, which is done here."""
    if bits == AS_COMPUTED:
        return chunk.memory_bytes
    return KVFormat.of(chunk.keys, bits).pack(chunk.keys, chunk.values).nbytes


def stock(model: Qwen3VL, network: Any, frames: Sequence[Frame], repeats: int) -> Row:
    """One forward over the clip with a question behind it."""

    def forward() -> tuple[int, Any]:
        inputs = stock_inputs(model, list(frames))
        network.model.rope_deltas = None
        output = network(**inputs, use_cache=True, logits_to_keep=1)
        return inputs["input_ids"].shape[1], output.past_key_values

    (tokens, cache), seconds, gmacs = fastest(model, forward, repeats)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    return Row("stock", len(frames), seconds, gmacs, tokens, held)


def fastest(model: Qwen3VL, run: Callable[[], T], repeats: int) -> tuple[T, float, float]:
    """What a run gives, the seconds of the fastest, and giga multiply-adds. A first run is counted,
    which slows small models down; it is timed only where it is the only one."""
    (made, seconds), gmacs = counted(lambda: timed(model, run))
    return made, min((timed(model, run)[1] for _ in range(repeats)), default=seconds), gmacs


def timed(model: Qwen3VL, run: Callable[[], T]) -> tuple[T, float]:
    started = now(model.device)
    return run(), now(model.device) - started


def looped(clip: Sequence[Frame], times: int) -> list[Frame]:
    """The clip played so many times, its times going on."""
    seconds = clip[-1].pts_seconds - clip[0].pts_seconds + 1 / FPS
    return [
        replace(frame, pts_seconds=frame.pts_seconds + k * seconds)
        for k in range(times)
        for frame in clip
    ]


def missed(rows: Sequence[Row], own_bits: int) -> list[str]:
    """The targets that were not met, in words; KV is judged in the bits that the model keeps by
    default.
    """
    by_way = {row.way: row for row in rows}
    kept_as = next(
        way
        for way, (reuse, prune, bits) in WAYS.items()
        if "none" not in (reuse, prune) and bits == own_bits
    )
    faster = by_way["stock"].seconds / by_way[kept_as].seconds
    kept = by_way[kept_as].kv_bytes / by_way["plain"].kv_bytes
    told = [] if faster >= FASTER else [f"{faster:.2f} x the stock model, wanted {FASTER:.0f} x"]
    return (
        told
        if kept <= KV_SHARE
        else [*told, f"{100 * kept:.1f} % of the plain KV, wanted {100 * KV_SHARE:.0f} %"]
    )


def report(rows: Sequence[Row], own_bits: int) -> list[str]:
    first, plain = rows[0], rows[1]
    cells = [
        [
            r.way,
            f"{r.frames_per_second:.2f}",
            f"{first.seconds / r.seconds:.2f} x",
            f"{r.gmacs / r.frames:.3f}",
            f"{first.gmacs / r.gmacs:.2f} x",
            f"{r.tokens / r.seconds:.0f}",
            f"{r.kv_gib_per_hour:.3f}",
            f"{100 * r.kv_bytes / plain.kv_bytes:.0f} %",
        ]
        for r in rows
    ]
    head = [
        "way",
        "frames/s",
        "as fast as stock",
        "GMAC/frame",
        "fewer",
        "tokens/s into the LLM",
        "KV GiB/h",
        "of plain",
    ]
    told = [f"Missed: {line}." for line in missed(rows, own_bits)] or ["All targets are met."]
    return [*table(head, cells), "", *told]


def main(
    video: Annotated[
        Path | None,
        typer.Option(help="A clip of a static camera. [default: one that the bench makes]"),
    ] = None,
    shape: Annotated[str, typer.Option(help=" | ".join(SHAPES))] = "demo",
    frames: Annotated[int, typer.Option(help="Most frames of the clip.", min=2)] = 60,
    chunk_frames: Annotated[int, typer.Option(help="Frames of a chunk.")] = 8,
    repeats: Annotated[
        int,
        typer.Option(
            help="Timed runs, the fastest counts; 0 times the one whose work is counted.", min=0
        ),
    ] = 3,
    budget: Annotated[
        float | None, typer.Option(help="Share of tokens kept. [default: the model's own]")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Where the results go. [default: by the shape]")
    ] = None,
    loops: Annotated[
        int, typer.Option(help="How often the clip is played, for a longer stream.", min=1)
    ] = 1,
) -> None:
    """Compare four ways of watching one clip with the stock model."""
    torch.set_grad_enabled(False)
    place = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    )
    model, network, side = random_model(
        shape, place, torch.float32 if place.type == "cpu" else torch.bfloat16
    )
    count = frames // 2 * 2
    clip = looped(read_clip(video, count) if video else static_camera(side, count), loops)
    rows = [stock(model, network, clip, repeats)]
    own = own_settings(shape)
    share = own.prune.budget if budget is None else budget
    rows += [ours(model, clip, chunk_frames, way, share, repeats) for way in track(WAYS, shape)]
    about = {
        **describe(),
        "clip": video.name if video else "made by the bench",
        "shape": shape,
        "loops": loops,
        "frames": len(clip),
        "chunk frames": chunk_frames,
        "share of tokens kept": share,
    }
    lines = report(rows, own.memory.kv_bits)
    data = {"missed": missed(rows, own.memory.kv_bits), "rows": [asdict(row) for row in rows]}
    name = f"savings-{shape}" + (f"-{loops}x" if loops > 1 else "")
    save(out or RESULTS / name, f"Reuse and pruning on one clip: {shape}", about, lines, data)
    print("\n".join(lines))
    raise typer.Exit(1 if data["missed"] else 0)


if __name__ == "__main__":
    typer.run(main)
