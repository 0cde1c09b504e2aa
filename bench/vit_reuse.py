"""What reusing a vision tower's work saves, against the stock tower in batches: time and
multiply-adds per frame.

    python -m bench.vit_reuse
    python -m bench.vit_reuse --videos DIR --towers qwen3-vl-4b --frames 64

Clips of a static camera, a moving camera and hard cuts, made by the bench or real ones, go chunk by
chunk through the tower, whole and with reuse by turns; measuring what is new belongs to the reuse.
Weights of large towers are random: neither cost nor choice depends on them; how far features stay
from the stock tower's is told for the embedded model's trained one. Exits with 1 where a target is
missed. Writes JSON and Markdown into `bench/results/`.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from torch import Tensor
from torch.nn.functional import cosine_similarity

from bench.clips import CLIPS as MADE_CLIPS
from bench.clips import FPS, read_clip
from bench.machine import counted, describe, now, save
from bench.report import table
from bench.rivals.shapes import random_siglip, random_tower
from config import ReuseConfig
from frames import Frame
from keyframes.chunk_builder import ChunkBuilder, ChunkLimits, build_chunks
from keyframes.detector import KeyframeDetector
from keyframes.frame_diff import analysis_grid, measure_frames
from keyframes.frame_group import FrameGroup
from keyframes.reuse import FeatureReuse, KeyframeNovelty
from keyframes.vit_cacher import Work
from models.demo.architecture import SIDE
from models.loading import load
from models.partial_vit import Tower, qwen3_vl_tower, siglip_tower
from models.pixels import BUDGET_FRAMES, PixelSpec, group_patches, resize
from models.video_llm import split_into_groups
from streaming.batching import BATCH_FRAMES

RESULTS = Path(__file__).parent / "results"
REAL_CLIPS = {
    "static camera": "intel_car_detection.mp4",
    "static camera, always something moving": "dlc_openfield_mouse.mp4",
    "moving camera": "mdn_crystal.webm",
    "many cuts": "derived_toys_sequence.mp4",
}
TOWERS = ("demo", "siglip-so400m", "qwen3-vl-4b")
FASTER = 2.0  # at least, on a static camera
NOT_SLOWER = 0.95  # at least, with many cuts: a twentieth is the noise of the clock
TOLERANCE = 1e-3
CLIP_SIDE = 448  # pixels of a made clip


@dataclass(frozen=True, eq=False)
class Subject:
    """A tower to measure. stock: patches [g, T, values] to what it makes of them; grid in
    patches.
    """

    name: str
    tower: Tower
    stock: Callable[[Tensor], Tensor]
    cut: Callable[[Sequence[Frame]], Tensor]
    grid: tuple[int, int]
    chunk_frames: int


@dataclass(frozen=True)
class Row:
    """One clip through one tower. Times and multiply-adds per frame, whole against reused; work as
    shares of groups.
    """

    tower: str
    clip: str
    frames: int
    whole_ms: float
    reused_ms: float
    measuring_ms: float
    whole_gmacs: float
    reused_gmacs: float
    work: dict[str, float]
    cosine: float
    control_cosine: float

    @property
    def ratio(self) -> float:
        return self.whole_ms / self.reused_ms


def subject(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Subject:
    """Raises ValueError for a tower that is not known."""
    if name == "siglip-so400m":
        return _siglip(device, dtype)
    if name == "demo":
        model: Any = load("demo", device=str(device))
        visual, side, patch = model._visual, SIDE, model._pixels.patch_size
    else:
        visual, side = random_tower(name, device)
        visual, patch = visual.to(dtype), 16
    pixels = side * side * BUDGET_FRAMES
    spec = PixelSpec(patch, 2, 2, min_pixels=pixels, max_pixels=pixels)
    grid = (side // patch, side // patch)

    def cut(frames: Sequence[Frame]) -> Tensor:
        images = [square(frame, side) for frame in frames]
        patches = torch.stack([_patches(images[k : k + 2], spec) for k in range(0, len(images), 2)])
        return patches.to(device, visual.dtype)

    def stock(patches: Tensor) -> Tensor:
        grids = torch.tensor([[1, *grid]] * len(patches), device=device)
        out: Tensor = visual(patches.flatten(0, 1), grid_thw=grids).pooler_output
        return out.reshape(len(patches), -1, out.shape[-1])

    return Subject(
        name, qwen3_vl_tower(visual), stock, cut, grid, BATCH_FRAMES if name == "demo" else 16
    )


def _siglip(device: torch.device, dtype: torch.dtype) -> Subject:
    """SigLIP so400m, patches of 14 at 384 x 384, as LLaVA-OneVision has it."""
    vision = random_siglip(device).to(dtype)
    across = 384 // 14

    inner = across * 14

    def cut(frames: Sequence[Frame]) -> Tensor:
        pixels = (
            torch.stack([square(frame, 384) for frame in frames])[:, :inner, :inner].float() / 127.5
            - 1
        )
        cells = pixels.reshape(len(frames), across, 14, across, 14, 3).permute(0, 1, 3, 5, 2, 4)
        return cells.reshape(len(frames), across**2, -1).to(device, dtype)

    def stock(patches: Tensor) -> Tensor:
        cells = patches.reshape(len(patches), across, across, 3, 14, 14).permute(0, 3, 1, 4, 2, 5)
        full = torch.zeros(len(patches), 3, 384, 384, device=device, dtype=dtype)
        full[..., :inner, :inner] = cells.reshape(len(patches), 3, inner, inner)
        hidden: Tensor = vision(full, output_hidden_states=True).hidden_states[-1]
        return hidden

    return Subject("siglip-so400m", siglip_tower(vision), stock, cut, (across, across), 16)


def square(frame: Frame, side: int) -> Tensor:
    """The picture at the tower's size, uint8 [side, side, 3]."""
    pixels = torch.from_numpy(frame.image).permute(2, 0, 1)[None]
    return resize(pixels, (side, side))[0].permute(1, 2, 0)


def _patches(pair: list[Tensor], spec: PixelSpec) -> Tensor:
    return group_patches([*pair, *pair[-1:] * (2 - len(pair))], spec)[0]


def clips(videos: Path | None, side: int, num_frames: int) -> dict[str, list[Frame]]:
    """Real clips from a folder, or those that the bench makes itself."""
    if videos is None:
        return {name: make(side, num_frames) for name, make in MADE_CLIPS.items()}
    return {name: read_clip(videos / file, num_frames) for name, file in REAL_CLIPS.items()}


class Runs:
    """One clip through one tower, chunk by chunk, in both ways."""

    def __init__(self, subject: Subject, frames: Sequence[Frame], config: ReuseConfig) -> None:
        size = subject.tower.frames_per_group
        self._subject, self._config = subject, config
        self._frames = frames[: len(frames) // size * size]
        parts = range(0, len(self._frames), subject.chunk_frames)
        self._patches = [subject.cut(self._frames[k : k + subject.chunk_frames]) for k in parts]

    def row(self, clip: str, repeats: int) -> Row:
        """Both by turns, `repeats` times; the fastest of each counts."""
        whole, reused = [], []
        for _ in range(repeats):
            whole.append(self._whole())
            reused.append(self._reused())
        _, features, work = reused[0]
        truth = whole[0][1]
        count = len(self._frames)
        groups = Counter(work)
        base = truth.flatten(0, 1)
        return Row(
            tower=self._subject.name,
            clip=clip,
            frames=count,
            whole_ms=1000 * min(w[0] for w in whole) / count,
            reused_ms=1000 * min(r[0] for r in reused) / count,
            measuring_ms=1000 * self._measuring() / count,
            whole_gmacs=counted(lambda: self._subject.stock(self._patches[0][:1]))[1]
            * len(work)
            / count,
            reused_gmacs=counted(self._reused)[1] / count,
            work={kind.value: groups[kind] / len(work) for kind in Work},
            cosine=float(cosine_similarity(features.flatten(0, 1), base, dim=-1).mean()),
            control_cosine=float(
                cosine_similarity(truth[:1].expand_as(truth).flatten(0, 1), base, dim=-1).mean()
            ),
        )

    def _whole(self) -> tuple[float, Tensor]:
        started = now(self._patches[0].device)
        made = [self._subject.stock(patches) for patches in self._patches]
        return now(self._patches[0].device) - started, torch.cat(made).float()

    def _prepared(self) -> list[list[FrameGroup]]:
        """The groups of each chunk, with what has changed in them."""
        grid, size = analysis_grid(self._subject.grid), self._subject.tower.frames_per_group
        limits = ChunkLimits(self._subject.chunk_frames, math.inf)
        builder = ChunkBuilder(limits, KeyframeDetector(), waits=True)
        novelty = KeyframeNovelty()
        prepared: list[list[FrameGroup]] = []
        for chunk in build_chunks(
            self._frames, builder, lambda frames: measure_frames(frames, lambda *_: grid)
        ):
            groups: list[FrameGroup] = []
            for diffs in split_into_groups(chunk.diffs, size):
                frames = [diff.frame for diff in diffs]
                groups.append(FrameGroup(frames, diffs, novelty=novelty.measure(diffs)))
            prepared.append(groups)
        return prepared

    def _reused(self) -> tuple[float, Tensor, list[Work]]:
        tower, device = self._subject.tower, self._patches[0].device
        reuse = FeatureReuse(tower, self._config)
        made: list[Tensor] = []
        work: list[Work] = []
        started = now(device)
        for patches, groups in zip(self._patches, self._prepared(), strict=True):
            encoded = reuse.encode(patches, self._subject.grid, groups)
            made.append(encoded.features.embeddings)
            work += encoded.work
        return now(device) - started, torch.cat(made).float(), work

    def _measuring(self) -> float:
        """Seconds that telling what is new takes alone."""
        started = time.perf_counter()
        self._prepared()
        return time.perf_counter() - started


def check_equal(subject: Subject, frames: Sequence[Frame]) -> float:
    """Largest difference between our walk through the tower and the stock forward. Raises
    ValueError beyond 1e-3.
    """
    patches = subject.cut(frames[: subject.tower.frames_per_group])
    everything = torch.ones(
        len(patches), patches.shape[1] // subject.tower.merge_size**2, dtype=torch.bool
    )
    ours, _ = subject.tower.forward_partial(
        patches, subject.grid, everything.to(patches.device), [0]
    )
    apart = float((ours.embeddings.float() - subject.stock(patches).float()).abs().max())
    if apart > TOLERANCE:
        raise ValueError(f"{subject.name}: our walk and the stock forward differ by {apart}")
    return apart


def missed(rows: Sequence[Row]) -> list[str]:
    """The targets that were not met, in words."""
    told = []
    for row in rows:
        wanted = (
            FASTER if row.clip == "static camera" else NOT_SLOWER if "cuts" in row.clip else 0.0
        )
        if row.ratio < wanted:
            told.append(f"{row.tower} on {row.clip}: {row.ratio:.2f} x, wanted {wanted} x")
    return told


def report(rows: Sequence[Row]) -> list[str]:
    cells = [
        [
            r.tower,
            r.clip,
            str(r.frames),
            f"{r.whole_ms:.2f}",
            f"{r.reused_ms:.2f}",
            f"{r.ratio:.2f} x",
            f"{r.measuring_ms:.2f}",
            f"{r.whole_gmacs:.2f}",
            f"{r.reused_gmacs:.2f}",
            f"{r.whole_gmacs / max(r.reused_gmacs, 1e-9):.2f} x",
            " / ".join(f"{100 * r.work[kind.value]:.0f}" for kind in Work),
            (f"{r.cosine:.3f} ({r.control_cosine:.3f})"),
        ]
        for r in rows
    ]
    head = [
        "tower",
        "clip",
        "frames",
        "stock ms/frame",
        "reuse ms/frame",
        "faster",
        "of it measuring",
        "stock GMAC/frame",
        "reuse GMAC/frame",
        "fewer",
        "% whole / refreshed / still",
        "cosine (first frame throughout)",
    ]
    return [
        *table(head, cells),
        "",
        *(f"Missed: {line}." for line in missed(rows)),
        *([] if missed(rows) else ["All targets are met."]),
    ]


def main(
    videos: Annotated[
        Path | None,
        typer.Option(help="Folder of real clips. [default: clips that the bench makes]"),
    ] = None,
    towers: Annotated[
        str, typer.Option(help="Which, with commas: " + " | ".join(TOWERS))
    ] = ",".join(TOWERS),
    frames: Annotated[int, typer.Option(help="Most frames of each clip, for large towers.")] = 64,
    share: Annotated[
        float, typer.Option(help="Most of a group's tokens recomputed.")
    ] = ReuseConfig.refresh_share,
    repeats: Annotated[
        int, typer.Option(help="Runs in each way, of which the fastest counts; for large towers.")
    ] = 2,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path, typer.Option(help="Where the results go.")] = RESULTS / "vit_reuse",
) -> None:
    """Compare reuse with the stock tower on real clips."""
    torch.set_grad_enabled(False)
    place = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    )
    config = ReuseConfig("novelty", refresh_share=share)
    rows = []
    for name in towers.split(","):
        tower = subject(name, place)
        shown = clips(videos, CLIP_SIDE, 200 if name == "demo" else frames)
        for clip, read in track(shown.items(), name):
            check_equal(tower, read)
            rows.append(Runs(tower, read, config).row(clip, repeats if name != "demo" else 40))
    source = str(videos) if videos else "made by the bench"
    about = {**describe(), "clips": source, "reuse": asdict(config), "frames per second": FPS}
    lines = report(rows)
    data = {"missed": missed(rows), "rows": [{**asdict(r), "ratio": r.ratio} for r in rows]}
    save(out, "What reusing the vision tower's work saves", about, lines, data)
    print("\n".join(lines))
    raise typer.Exit(1 if missed(rows) else 0)


if __name__ == "__main__":
    typer.run(main)
