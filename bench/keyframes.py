"""Hard cuts found in real and synthetic clips, beside PySceneDetect's detectors on the same decoded
frames.

    python -m bench.keyframes
    python -m bench.keyframes --videos DIR --truth cuts.json --no-synthetic

`cuts.json`: {"clip.mp4": {"hard_cuts": [[frame, seconds], ...], "ambiguous": [...]}, ...}, seconds
by the container's own clock; or a list of shots [{"start_s": seconds}, ...] in a file named as the
clip is. What is ambiguous counts neither way. Time is CPU time of one thread, from a decoded
picture to the verdict; ours finds keyframes as well. Exit code 1 when F1 or speed is behind the
better of the two. Writes JSON and Markdown into `bench/results/`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Protocol

import cv2
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.progress import track
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector, ContentDetector
from scenedetect.scene_manager import compute_downscale_factor

from bench.machine import describe, save
from bench.report import Target, judged, table
from bench.shots import KINDS, write
from frames import Frame
from keyframes.detector import KeyframeDetector
from keyframes.frame_diff import FrameDiff, measure_frames
from streaming.sources.pictures import VideoFile

RESULTS = Path(__file__).parent / "results"
SHARED = Path(__file__).parents[2] / "shared" / "videos"
TRUTHS = (SHARED / "truth" / "cuts.json", SHARED / "truth" / "derived_toys_sequence.json")
SEEDS = (1, 2)
TUNED_ON = "the real clips of the default run, and synthetic clips with seeds from 100 on"
TOLERANCE_SECONDS = 0.1
BATCH_FRAMES = 16
OURS = "ours"
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Clip:
    """A file and its truth, in seconds since its first picture."""

    group: str
    path: Path
    cuts: tuple[float, ...]
    ambiguous: tuple[float, ...] = ()


@dataclass(frozen=True)
class Score:
    """One way on one clip. false and missed: times in seconds."""

    group: str
    clip: str
    way: str
    hits: int
    missed: tuple[float, ...]
    false: tuple[float, ...]
    frames: int
    cpu_seconds: float


class Way(Protocol):
    """Finds the cuts of one clip: `look` at batches of frames, also as BGR, then `cuts` once."""

    cpu_seconds: float

    def look(self, frames: Sequence[Frame], bgrs: Sequence[Picture]) -> None: ...

    def cuts(self) -> list[float]: ...


class Ours:
    def __init__(self) -> None:
        self.cpu_seconds = 0.0
        self.found: list[FrameDiff] = []
        self._detector = KeyframeDetector()

    def look(self, frames: Sequence[Frame], bgrs: Sequence[Picture]) -> None:
        started = time.thread_time()
        self.found += self._detector.judge(measure_frames(frames))
        self.cpu_seconds += time.thread_time() - started

    def cuts(self) -> list[float]:
        started = time.thread_time()
        self.found += self._detector.flush()
        self.cpu_seconds += time.thread_time() - started
        return [diff.pts_seconds for diff in self.found if diff.keyframe == "cut"]


@dataclass
class Theirs:
    """A detector of PySceneDetect, fed as its own scene manager does: BGR, shrunk by its own
    factor.
    """

    detector: ContentDetector | AdaptiveDetector
    fps: float
    cpu_seconds: float = 0.0
    _seconds: list[float] = field(default_factory=list)
    _found: list[FrameTimecode] = field(default_factory=list)

    def look(self, frames: Sequence[Frame], bgrs: Sequence[Picture]) -> None:
        for frame, bgr in zip(frames, bgrs, strict=True):
            started = time.thread_time()
            self._found += self.detector.process_frame(
                FrameTimecode(len(self._seconds), self.fps), shrunk(bgr)
            )
            self.cpu_seconds += time.thread_time() - started
            self._seconds.append(frame.pts_seconds)

    def cuts(self) -> list[float]:
        found = self._found + self.detector.post_process(
            FrameTimecode(len(self._seconds) - 1, self.fps)
        )
        return [self._seconds[timecode.frame_num] for timecode in found]


def shrunk(bgr: Picture) -> Picture:
    factor = compute_downscale_factor(bgr.shape[1])
    if factor <= 1:
        return bgr
    size = (round(bgr.shape[1] / factor), round(bgr.shape[0] / factor))
    return np.asarray(cv2.resize(bgr, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def ways(fps: float) -> dict[str, Way]:
    """Theirs as they come, and the better one without the shortest shot that it allows by default
    (15 frames).
    """
    return {
        OURS: Ours(),
        "Content": Theirs(ContentDetector(), fps),
        "Adaptive": Theirs(AdaptiveDetector(), fps),
        "Adaptive, any shot": Theirs(AdaptiveDetector(min_scene_len=1), fps),
    }


def measure(clip: Clip) -> list[Score]:
    with VideoFile(clip.path) as video:
        looking = ways(float(video.rate))
        count = 0
        for batch in batches(video):
            count += len(batch)
            bgrs = [np.ascontiguousarray(frame.image[:, :, ::-1]) for frame in batch]
            for way in looking.values():
                way.look(batch, bgrs)
    scores = []
    for name, way in looking.items():
        hits, missed, false = matched(way.cuts(), clip.cuts, clip.ambiguous)
        scores.append(
            Score(clip.group, clip.path.name, name, hits, missed, false, count, way.cpu_seconds)
        )
    return scores


def batches(video: VideoFile) -> Iterator[list[Frame]]:
    batch: list[Frame] = []
    for index, picture in enumerate(video.pictures()):
        batch.append(Frame(video.rgb(picture), picture.seconds, index))
        if len(batch) == BATCH_FRAMES:
            yield batch
            batch = []
    if batch:
        yield batch


def matched(
    found: Iterable[float], truth: Sequence[float], ambiguous: Sequence[float]
) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """(hits, missed, false): each true cut takes the nearest found one in reach that is still
    free.
    """
    free, missed = sorted(found), []
    for cut in truth:
        near = [seconds for seconds in free if abs(seconds - cut) <= TOLERANCE_SECONDS]
        if near:
            free.remove(min(near, key=lambda seconds: abs(seconds - cut)))
        else:
            missed.append(cut)
    false = [
        seconds for seconds in free if all(abs(seconds - a) > TOLERANCE_SECONDS for a in ambiguous)
    ]
    return len(truth) - len(missed), tuple(missed), tuple(false)


def real_clips(videos: Path, truths: Iterable[Path]) -> list[Clip]:
    """The clips that truth files tell of and that are there."""
    found = []
    for path in truths:
        for name, told in told_cuts(path, videos).items():
            if (videos / name).is_file():
                with VideoFile(videos / name) as video:
                    next(video.pictures())
                    first_seconds = float((video.clock.first or 0) * video.time_base)
                cuts, unclear = (
                    tuple(s - first_seconds for s in told[key])
                    for key in ("hard_cuts", "ambiguous")
                )
                found.append(Clip("real", videos / name, cuts, unclear))
    return found


def told_cuts(path: Path, videos: Path) -> dict[str, dict[str, list[float]]]:
    data = json.loads(path.read_text())
    if isinstance(data, list):
        name = next(
            (video.name for video in videos.glob(f"{path.stem}.*") if video.suffix != ".json"),
            path.stem,
        )
        return {name: {"hard_cuts": [shot["start_s"] for shot in data[1:]], "ambiguous": []}}
    keys = ("hard_cuts", "ambiguous")
    return {
        name: {key: [seconds for _, seconds in told.get(key, [])] for key in keys}
        for name, told in data.items()
        if not name.startswith("_")
    }


def synthetic_clips(folder: Path, seeds: Iterable[int]) -> Iterator[Clip]:
    for seed in seeds:
        for kind in KINDS:
            path = folder / f"{kind}-{seed}.mp4"
            cuts = write(path, kind, seed)
            yield Clip(f"synthetic {kind}", path, tuple(cuts))
            path.unlink()


def f1(scores: Sequence[Score]) -> tuple[float, float, float]:
    """(precision, recall, F1) of pooled scores."""
    hits = sum(s.hits for s in scores)
    false, missed = sum(len(s.false) for s in scores), sum(len(s.missed) for s in scores)
    precision = hits / (hits + false) if hits + false else 1.0
    recall = hits / (hits + missed) if hits + missed else 1.0
    return (
        precision,
        recall,
        2 * hits / (2 * hits + false + missed) if hits + false + missed else 1.0,
    )


def ms_per_frame(scores: Sequence[Score]) -> float:
    return 1000 * sum(s.cpu_seconds for s in scores) / sum(s.frames for s in scores)


def targets(scores: Sequence[Score]) -> list[Target]:
    """Ours beside the best of the others: pooled over the real clips, over the synthetic ones, and
    in speed.
    """
    names = list(dict.fromkeys(s.way for s in scores))
    found = []
    for kind in ("real", "synthetic"):
        of_kind = [s for s in scores if s.group.startswith(kind)]
        if of_kind:
            reached = {name: f1([s for s in of_kind if s.way == name])[2] for name in names}
            mine, best = reached.pop(OURS), max(reached, key=reached.__getitem__)
            wanted, got = f"at least {best}: {reached[best]:.3f}", f"{mine:.3f}"
            found.append(Target(f"F1, {kind} clips", wanted, got, mine >= reached[best]))
    spent = {name: ms_per_frame([s for s in scores if s.way == name]) for name in names}
    mine, best = spent.pop(OURS), min(spent, key=spent.__getitem__)
    told = f"{mine:.3f}, ratio {spent[best] / mine:.2f}"
    return [
        *found,
        Target("CPU ms a frame", f"below {best}: {spent[best]:.3f}", told, mine < spent[best]),
    ]


def report(scores: Sequence[Score]) -> list[str]:
    """A Markdown table: a row for each group of clips and way."""
    rows = []
    groups = list(dict.fromkeys(s.group for s in scores))
    for group in [*groups, "synthetic", ""]:
        for way in dict.fromkeys(s.way for s in scores):
            some = [s for s in scores if s.way == way and s.group.startswith(group)]
            if some:
                counts = [
                    sum(map(len, part))
                    for part in ([s.missed for s in some], [s.false for s in some])
                ]
                frames, cuts = sum(s.frames for s in some), sum(s.hits for s in some) + counts[0]
                rates = [f"{rate:.3f}" for rate in f1(some)]
                row = [
                    group or "all",
                    way,
                    frames,
                    cuts,
                    *counts,
                    *rates,
                    f"{ms_per_frame(some):.3f}",
                ]
                rows.append([str(cell) for cell in row])
    return table(
        [
            "clips",
            "way",
            "frames",
            "cuts",
            "missed",
            "false",
            "precision",
            "recall",
            "F1",
            "CPU ms a frame",
        ],
        rows,
    )


def write_down(out: Path, scores: Sequence[Score], about: dict[str, str]) -> None:
    """`out`.json and .md."""
    met = targets(scores)
    data = {"targets": [asdict(t) for t in met], "scores": [asdict(s) for s in scores]}
    save(out, "Hard cuts", about, [*judged(met, OURS), "", *report(scores)], data)


def main(
    videos: Annotated[Path, typer.Option(help="Folder of the clips.")] = SHARED,
    truth: Annotated[list[Path] | None, typer.Option(help="Files that tell their cuts.")] = None,
    synthetic: Annotated[
        bool, typer.Option(help="Make and measure synthetic clips as well.")
    ] = True,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds of the synthetic clips.")] = None,
    out: Annotated[Path, typer.Option(help="Results, without suffix.")] = RESULTS / "keyframes",
) -> None:
    """Measure, print, write; exit code 1 when a target is missed."""
    truths, seeds = truth or TRUTHS, seed or SEEDS
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with TemporaryDirectory() as folder:
        clips = list(real_clips(videos, [path for path in truths if path.is_file()]))
        made = synthetic_clips(Path(folder), seeds if synthetic else ())
        total = len(clips) + len(seeds) * len(KINDS) * synthetic
        scores = [
            score for clip in track(chain(clips, made), "clips", total) for score in measure(clip)
        ]
    if not scores:
        raise typer.BadParameter(f"no clip of {', '.join(map(str, truths))} lies in {videos}")
    about = {
        **describe(),
        "matched within": f"{TOLERANCE_SECONDS} s",
        "thresholds were chosen on": TUNED_ON,
    }
    write_down(out, scores, about)
    print("\n".join([*report(scores), "", *judged(targets(scores), OURS)]))
    raise typer.Exit(0 if all(target.is_met for target in targets(scores)) else 1)


if __name__ == "__main__":
    typer.run(main)
