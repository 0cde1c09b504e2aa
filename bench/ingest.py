"""What watching costs: milliseconds per chunk by stage and device bytes against the length of the
stream, and what the stock model needs for the same frames.

    python -m bench.ingest --shape demo --hours 6
    python -m bench.ingest --shape qwen3-vl-8b --hours 5 --stock-frames 4096     (on a GPU)

Weights are random: costs do not depend on them. Writes JSON and Markdown into `bench/results/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.progress import Progress
from torch import Tensor

from bench.clips import FPS, static_camera
from bench.machine import describe, now, save
from bench.report import table
from bench.rivals.shapes import SHAPES, random_model
from config import AnswerConfig, MemoryConfig
from frames import Frame, in_parts
from memory.kv_memory import KVMemory
from memory.recall_policy import numbered_from, plan_recall
from memory.records import NewChunk
from memory.retrieval_index import HeadIndex
from models.calibration import Profile, RetrievalHead
from models.pixels import normalise_patches
from models.qwen3_vl import Qwen3VL

RESULTS = Path(__file__).parent / "results"
# shown again and again: what frames show makes no difference to the cost of a plain ingest
CLIP_FRAMES = 64
QUESTION = "What colour is the star?"
MIB = 1 << 20


@dataclass(frozen=True)
class Cost:
    """Medians over the chunks of a stretch of the stream that ends at `frames`, and what holds
    there.
    """

    frames: int
    preprocess_ms: float
    vision_ms: float
    prefill_ms: float
    memory_ms: float
    first_token_ms: float
    context_tokens: int
    memory_device_bytes: int
    peak_device_bytes: int

    @property
    def chunk_ms(self) -> float:
        return self.preprocess_ms + self.vision_ms + self.prefill_ms + self.memory_ms


@dataclass(frozen=True)
class StockCost:
    """One forward of the stock model over a clip from its first frame to `frames`, up to the first
    token.
    """

    frames: int
    seconds: float
    cache_bytes: int
    peak_device_bytes: int


class Clock:
    """Wall-clock by stage; waits for the device at every border."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.spent: dict[str, list[float]] = {}

    def now(self) -> float:
        return now(self._device)

    def add(self, stage: str, seconds: float) -> None:
        self.spent.setdefault(stage, []).append(1000 * seconds)

    def medians(self) -> dict[str, float]:
        """Milliseconds of each stage since the last call."""
        found = {f"{stage}_ms": median(spent) for stage, spent in self.spent.items()}
        self.spent.clear()
        return found


class Ingest:
    """Watches as a session does, with a clock between the stages."""

    def __init__(self, model: Qwen3VL, config: MemoryConfig) -> None:
        self.model, self.config = model, config
        self.clock = Clock(model.device)
        self._profile = two_heads(model)
        self._vision_seconds = 0.0
        self._time_vision()
        self.index = HeadIndex(len(self._profile.heads), model.head_dim, model.dtype)
        self.memory = KVMemory(config, model.device, index=self.index)

    def _time_vision(self) -> None:
        """The vision tower runs inside `encode`; hooks tell its share from the preprocessing's."""
        tower = self.model._visual
        tower.register_forward_pre_hook(lambda *_: self._vision(-self.clock.now()))
        tower.register_forward_hook(lambda *_: self._vision(self.clock.now()))

    def _vision(self, seconds: float) -> None:
        self._vision_seconds += seconds

    def watch(self, frames: list[Frame]) -> None:
        clock, reach = self.clock, self.config.prefill_chunks
        self._vision_seconds = 0.0
        started = clock.now()
        groups = self.model.encode(frames)
        encoded = clock.now()
        context = [self.model.prefix(), *(self.memory.window()[-reach:] if reach else [])]
        chunk = self.model.prefill(groups, context, self.memory.num_chunks)
        prefilled = clock.now()
        self.memory.append(NewChunk(chunk, self._profile.keys_of(chunk)))
        clock.add("preprocess", encoded - started - self._vision_seconds)
        clock.add("vision", self._vision_seconds)
        clock.add("prefill", prefilled - encoded)
        clock.add("memory", clock.now() - prefilled)

    def ask(self) -> tuple[float, int]:
        """Milliseconds to the first token of an answer, and the tokens of its context."""
        started = self.clock.now()
        found = self.index.search(
            self._profile.queries_of(self.model, QUESTION), self.config.recall_chunks
        )
        scores = found.mean(0).tolist()
        plan = plan_recall(
            scores, [], len(scores), self.config.window_chunks, self.config.recall_chunks
        )
        plan = numbered_from(plan, self.memory.first_chunk)
        context = [self.model.prefix(), *self.memory.get(plan.indices)]
        next(self.model.answer_tokens(QUESTION, context, (), AnswerConfig(max_new_tokens=1)), None)
        return 1000 * (self.clock.now() - started), sum(chunk.num_tokens for chunk in context)


def two_heads(model: Qwen3VL) -> Profile:
    """A profile of the usual size; which heads it names makes no difference to the cost."""
    layers = (model.num_layers // 2, model.num_layers // 2 + 1)
    heads = tuple(
        RetrievalHead(layer, 0, 0, mean=0.0, std=1.0, weight=1.0, hit1=0.0, hit4=0.0)
        for layer in layers
    )
    return Profile(
        model.model_id, str(model.dtype), model.num_heads // model.num_kv_heads, heads, 0, 0.0, 0.0
    )


def repeated_frames(side: int, count: int) -> Iterator[Frame]:
    """`count` frames at `FPS`: a made clip again and again."""
    clip = static_camera(side, min(count, CLIP_FRAMES))
    for k in range(count):
        yield Frame(clip[k % len(clip)].image, k / FPS, k)


def peak_bytes(device: torch.device) -> int:
    """The most the device has held since the last call; 0 where nobody counts."""
    if device.type != "cuda":
        return 0
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def measure(
    model: Qwen3VL, config: MemoryConfig, side: int, frames: int, points: int
) -> tuple[list[Cost], int]:
    """Costs at `points` places of a stream of `frames` frames, and how often the host tier was
    begun anew.
    """
    ingest = Ingest(model, config)
    every = max(config.chunk_frames, frames // points // config.chunk_frames * config.chunk_frames)
    costs: list[Cost] = []
    seen = 0
    peak_bytes(model.device)
    with Progress() as bar:
        task = bar.add_task("watching", total=frames)
        for part in in_parts(repeated_frames(side, frames), config.chunk_frames):
            ingest.watch(part)
            seen += len(part)
            bar.update(task, completed=seen)
            if seen % every == 0:
                peak = peak_bytes(model.device)
                spent = ingest.clock.medians()
                first_token_ms, tokens = ingest.ask()
                held = ingest.memory.device_bytes
                costs.append(
                    Cost(
                        seen,
                        **spent,
                        first_token_ms=first_token_ms,
                        context_tokens=tokens,
                        memory_device_bytes=held,
                        peak_device_bytes=peak,
                    )
                )
    return costs, ingest.memory.first_chunk


def stock_costs(
    model: Qwen3VL, network: Any, side: int, most_frames: int, most_seconds: float
) -> list[StockCost]:
    """The stock model on the first 16, 32, 64, ... frames, until it is too large, too slow or at
    `most_frames`.
    """
    costs: list[StockCost] = []
    frames = 16
    while frames <= most_frames and (not costs or costs[-1].seconds < most_seconds):
        try:
            costs.append(stock_cost(model, network, side, frames))
        except torch.OutOfMemoryError:
            break
        frames *= 2
    return costs


def stock_cost(model: Qwen3VL, network: Any, side: int, frames: int) -> StockCost:
    inputs = stock_inputs(model, list(repeated_frames(side, frames)))
    peak_bytes(model.device)
    started = now(model.device)
    network.model.rope_deltas = None
    output = network(**inputs, use_cache=True, logits_to_keep=1)
    int(output.logits[0, -1].argmax())
    seconds = now(model.device) - started
    cached = sum(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers)
    return StockCost(frames, seconds, cached, peak_bytes(model.device))


def stock_inputs(model: Qwen3VL, frames: Sequence[Frame]) -> dict[str, Tensor]:
    """A whole clip with a question as the stock forward takes it."""
    size, prompt = model.frames_per_group, model._prompt
    cut = model.cut_patches([frames[k : k + size] for k in range(0, len(frames), size)])
    patches = normalise_patches(torch.cat([patches for patches, _ in cut]), model._pixels)
    groups = [
        model._group(
            frames[k : k + size],
            grid,
            torch.empty(of_group.shape[0] // model._pixels.merge_size**2, 0),
            (),
        )
        for k, (of_group, grid) in zip(range(0, len(frames), size), cut, strict=True)
    ]
    script = prompt.build_inputs(groups)
    before, after = prompt.prefix(), prompt.question(QUESTION, ())
    marks = torch.cat([torch.zeros(len(before)), 2 * script.visual, torch.zeros(len(after))]).long()
    return {
        "input_ids": torch.tensor([[*before, *script.tokens, *after]], device=model.device),
        "pixel_values_videos": patches.to(model.device, model.dtype),
        "video_grid_thw": torch.tensor([[len(cut), *cut[0][1]]], device=model.device),
        "mm_token_type_ids": marks[None].to(model.device),
    }


def report(costs: list[Cost], stock: list[StockCost]) -> list[str]:
    """Both tables as Markdown, with the ratios."""
    ours = [
        [
            f"{c.frames}",
            f"{c.chunk_ms:.1f}",
            f"{c.preprocess_ms:.1f}",
            f"{c.vision_ms:.1f}",
            f"{c.prefill_ms:.1f}",
            f"{c.memory_ms:.1f}",
            f"{c.first_token_ms:.0f}",
            f"{c.context_tokens}",
            f"{c.memory_device_bytes / MIB:.2f}",
            f"{c.peak_device_bytes / MIB:.0f}",
        ]
        for c in costs
    ]
    head = [
        "frames",
        "ms per chunk",
        "preprocess",
        "vision",
        "prefill",
        "memory",
        "first token ms",
        "context tokens",
    ]
    lines = [*table([*head, "memory device MiB", "peak device MiB"], ours), ""]
    first, last = costs[0], costs[-1]
    lines.append(
        f"From {first.frames} to {last.frames} frames: time per chunk x "
        f"{last.chunk_ms / first.chunk_ms:.2f}, device "
        f"bytes of the memory x {last.memory_device_bytes / first.memory_device_bytes:.2f}, "
        f"first token x {last.first_token_ms / first.first_token_ms:.2f}."
    )
    if stock:
        rows = [
            [
                f"{s.frames}",
                f"{s.seconds:.2f}",
                f"{s.cache_bytes / MIB:.1f}",
                f"{s.peak_device_bytes / MIB:.0f}",
            ]
            for s in stock
        ]
        lines += [
            "",
            *table(
                ["frames", "stock: seconds to first token", "cache MiB", "peak device MiB"], rows
            ),
            "",
        ]
        most = stock[-1]
        lines.append(
            f"After {most.frames} frames the stock model holds "
            f"{most.cache_bytes / last.memory_device_bytes:.1f} x our "
            f"memory's device bytes and takes "
            f"{1000 * most.seconds / last.first_token_ms:.1f} x as long to first token "
            f"as ours after {last.frames}."
        )
    return lines


def main(
    shape: Annotated[str, typer.Option(help=" | ".join(SHAPES))] = "demo",
    hours: Annotated[
        float, typer.Option(help="Length of the stream, at 2 frames per second.")
    ] = 6.0,
    points: Annotated[int, typer.Option(help="Places of the stream to measure at.", min=1)] = 12,
    stock_frames: Annotated[
        int, typer.Option(help="Most frames for the stock model; 0 leaves it out.")
    ] = 2048,
    stock_seconds: Annotated[
        float, typer.Option(help="The stock model is too slow beyond so many seconds.")
    ] = 30.0,
    chunk_frames: Annotated[int, typer.Option(help="Frames per chunk.")] = 16,
    host_gib: Annotated[
        float, typer.Option(help="Budget of the host tier; when full it is begun anew.")
    ] = 4.0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Where the results go. [default: by the shape]")
    ] = None,
) -> None:
    """Watch a long stream with random weights and say what every chunk costs."""
    torch.set_grad_enabled(False)
    place = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    )
    model, network, side = random_model(
        shape, place, torch.bfloat16 if place.type == "cuda" else torch.float32
    )
    config = MemoryConfig(chunk_frames=chunk_frames, host_bytes=int(host_gib * (1 << 30)))
    costs, forgotten = measure(model, config, side, round(hours * 3600 * FPS), points)
    stock = stock_costs(model, network, side, stock_frames, stock_seconds)
    about = {
        **describe(),
        "shape": shape,
        "frame side": side,
        "memory": asdict(config),
        "chunks forgotten": forgotten,
    }
    data = {"ours": [asdict(c) for c in costs], "stock": [asdict(s) for s in stock]}
    lines = report(costs, stock)
    save(out or RESULTS / f"ingest-{shape}", f"What watching costs: {shape}", about, lines, data)
    print("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
