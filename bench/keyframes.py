"""Hard cuts found in real and synthetic clips, beside PySceneDetect's detectors on the same decoded
frames: in every frame of a clip, and in those that a session sees of it.

    python -m bench.keyframes
    python -m bench.keyframes --videos DIR --no-synthetic

With --videos, `DIR/truth/*.json` say where the cuts are: {"clip.mp4": {"hard_cuts": [[frame,
seconds], ...], "ambiguous": [...]}, ...}, seconds by the container's own clock; or a list of shots
[{"start_s": seconds}, ...] in a file named as the clip is. What is ambiguous counts neither way. At
the sampled rate a cut lies at the first frame after it that is taken, and several between two
frames are one. Time is CPU time of one thread, from a decoded picture to the verdict; ours finds
keyframes as well. Exit code 1 when F1 or speed is behind the better of the two. Writes JSON and
Markdown into `bench/results/`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from config import ReadConfig
from frames import ROUNDING_SECONDS, Frame
from keyframes.chunk_builder import MEASURE_FRAMES
from keyframes.detector import KeyframeDetector
from keyframes.frame_diff import FrameDiff, Grid, analysis_grid, measure_frames
from models.pixels import PixelSpec, fit_size
from streaming.sources.file import FileSource
from streaming.sources.pictures import VideoFile

RESULTS = Path(__file__).parent / "results"
SEEDS = (1, 2)
TUNED_ON = "real clips, and synthetic clips with seeds from 100 on"
EVERY_FRAME = "every frame"
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
    rate: str = EVERY_FRAME


class Way(Protocol):
    """Finds the cuts of one clip: `look` at batches of frames, also as BGR, then `cuts` once."""

    cpu_seconds: float

    def look(self, frames: Sequence[Frame], bgrs: Sequence[Picture]) -> None: ...

    def cuts(self) -> list[float]: ...


class Ours:
    """grid_of: as in a session, where cells are measured besides; None for cuts alone."""

    def __init__(self, grid_of: Callable[[int, int], Grid] | None = None) -> None:
        self.cpu_seconds = 0.0
        self._grid_of = grid_of
        self.found: list[FrameDiff] = []
        self._detector = KeyframeDetector()

    def look(self, frames: Sequence[Frame], bgrs: Sequence[Picture]) -> None:
        started = time.thread_time()
        self.found += self._detector.judge(measure_frames(frames, self._grid_of))
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
    """In every frame: theirs as they come, and the better one without the shortest shot that it
    allows by default (15 frames).
    """
    return {
        OURS: Ours(),
        "Content": Theirs(ContentDetector(), fps),
        "Adaptive": Theirs(AdaptiveDetector(), fps),
        "Adaptive, any shot": Theirs(AdaptiveDetector(min_scene_len=1), fps),
    }


def sampled_ways(fps: float) -> dict[str, Way]:
    """In the frames that a session sees, of which 15 would be seconds: theirs for any shot."""
    return {
        OURS: Ours(session_grid),
        "Content, any shot": Theirs(ContentDetector(min_scene_len=1), fps),
        "Adaptive, any shot": Theirs(AdaptiveDetector(min_scene_len=1), fps),
    }


def session_grid(height: int, width: int) -> Grid:
    """The cells in which a session with a released Qwen3-VL measures a frame."""
    pixels = PixelSpec(patch_size=16, merge_size=2, temporal_patch_size=2)
    rows, columns = fit_size(height, width, pixels)
    return analysis_grid((rows // pixels.patch_size, columns // pixels.patch_size))


def measure(clip: Clip, sampled_fps: float | None = None) -> list[Score]:
    """All ways on one clip: in every frame, or in those that a session sees at this rate."""
    if sampled_fps is None:
        with VideoFile(clip.path) as video:
            return scores_of(clip, ways(float(video.rate)), batches(video), EVERY_FRAME)
    frames = list(FileSource(clip.path, sampled_fps).frames())
    times = [frame.pts_seconds for frame in frames]
    seen = Clip(clip.group, clip.path, snapped(clip.cuts, times), snapped(clip.ambiguous, times))
    looked_at = (frames[k : k + MEASURE_FRAMES] for k in range(0, len(frames), MEASURE_FRAMES))
    return scores_of(seen, sampled_ways(sampled_fps), looked_at, rate_name(sampled_fps))


def rate_name(fps: float) -> str:
    return f"{fps:g} frames a second"


def snapped(cuts: Sequence[float], times: Sequence[float]) -> tuple[float, ...]:
    """The first frame at or after each cut, once; none where the frames end before."""
    found: list[float] = []
    for cut in cuts:
        after = next((seconds for seconds in times if seconds >= cut - ROUNDING_SECONDS), None)
        if after is not None and after not in found and after > 0:
            found.append(after)
    return tuple(found)


def scores_of(
    clip: Clip, looking: dict[str, Way], batches: Iterable[Sequence[Frame]], rate: str
) -> list[Score]:
    count = 0
    for batch in batches:
        count += len(batch)
        bgrs = [np.ascontiguousarray(frame.image[:, :, ::-1]) for frame in batch]
        for way in looking.values():
            way.look(batch, bgrs)
    scores: list[Score] = []
    for name, way in looking.items():
        hits, missed, false = matched(way.cuts(), clip.cuts, clip.ambiguous)
        found = (clip.group, clip.path.name, name, hits, missed, false)
        scores.append(Score(*found, count, way.cpu_seconds, rate))
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
    """What a file says of cuts, by clip; nothing where it is about something else."""
    data = json.loads(path.read_text())
    if isinstance(data, list):
        if not all(isinstance(shot, dict) and "start_s" in shot for shot in data):
            return {}
        clips = (video.name for video in videos.glob(f"{path.stem}.*") if video.suffix != ".json")
        cuts = [shot["start_s"] for shot in data[1:]]
        return {next(clips, path.stem): {"hard_cuts": cuts, "ambiguous": []}}
    found: dict[str, dict[str, list[float]]] = {}
    for name, told in data.items():
        if isinstance(told, dict) and "hard_cuts" in told:
            found[name] = {
                key: [seconds for _, seconds in told.get(key, [])]
                for key in ("hard_cuts", "ambiguous")
            }
    return found


def synthetic_clips(folder: Path, seeds: Iterable[int]) -> Iterator[Clip]:
    for seed in seeds:
        for kind in KINDS:
            path = folder / f"{kind}-{seed}.mp4"
            cuts = write(path, kind, seed)
            yield Clip(f"synthetic {kind}", path, tuple(cuts))


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
    """Ours beside the best of the others at each rate: pooled over the real clips, over the
    synthetic ones, and in speed.
    """
    return [
        target
        for rate in dict.fromkeys(s.rate for s in scores)
        for target in targets_at(rate, [s for s in scores if s.rate == rate])
    ]


def targets_at(rate: str, scores: Sequence[Score]) -> list[Target]:
    names = list(dict.fromkeys(s.way for s in scores))
    found = []
    for kind in ("real", "synthetic"):
        of_kind = [s for s in scores if s.group.startswith(kind)]
        if of_kind:
            reached = {name: f1([s for s in of_kind if s.way == name])[2] for name in names}
            mine, best = reached.pop(OURS), max(reached, key=reached.__getitem__)
            wanted, got = f"at least {best}: {reached[best]:.3f}", f"{mine:.3f}"
            found.append(Target(f"F1, {kind} clips, {rate}", wanted, got, mine >= reached[best]))
    if rate != EVERY_FRAME:
        return found  # two frames a second cost nothing, whoever looks at them
    spent = {name: ms_per_frame([s for s in scores if s.way == name]) for name in names}
    mine, best = spent.pop(OURS), min(spent, key=spent.__getitem__)
    told = f"{mine:.3f}, ratio {spent[best] / mine:.2f}"
    return [
        *found,
        Target("CPU ms a frame", f"below {best}: {spent[best]:.3f}", told, mine < spent[best]),
    ]


def report(scores: Sequence[Score]) -> list[str]:
    """A Markdown table: a row for each rate, group of clips and way."""
    rows: list[list[str]] = []
    for rate in dict.fromkeys(s.rate for s in scores):
        rows += rows_at(rate, [s for s in scores if s.rate == rate])
    head = ["looked at", "clips", "way", "frames", "cuts", "missed", "false"]
    return table([*head, "precision", "recall", "F1", "CPU ms a frame"], rows)


def rows_at(rate: str, scores: Sequence[Score]) -> list[list[str]]:
    rows: list[list[str]] = []
    groups = list(dict.fromkeys(s.group for s in scores))
    for group in [*groups, "synthetic", ""]:
        for way in dict.fromkeys(s.way for s in scores):
            some = [s for s in scores if s.way == way and s.group.startswith(group)]
            if not some:
                continue
            missed = sum(len(s.missed) for s in some)
            false = sum(len(s.false) for s in some)
            cuts = sum(s.hits for s in some) + missed
            counts = [str(n) for n in (sum(s.frames for s in some), cuts, missed, false)]
            rates = [f"{share:.3f}" for share in f1(some)]
            spent = f"{ms_per_frame(some):.3f}"
            rows.append([rate, group or "all", way, *counts, *rates, spent])
    return rows


def write_down(out: Path, scores: Sequence[Score], about: dict[str, str]) -> None:
    """`out`.json and .md."""
    met = targets(scores)
    data = {"targets": [asdict(t) for t in met], "scores": [asdict(s) for s in scores]}
    save(out, "Hard cuts", about, [*judged(met, OURS), "", *report(scores)], data)


def main(
    videos: Annotated[
        Path | None,
        typer.Option(help="Folder of real clips, with a folder `truth` that tells their cuts."),
    ] = None,
    synthetic: Annotated[
        bool, typer.Option(help="Make and measure synthetic clips as well.")
    ] = True,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds of the synthetic clips.")] = None,
    sampled_fps: Annotated[
        float, typer.Option(help="Frames that a session sees of a second.")
    ] = ReadConfig.fps,
    out: Annotated[Path, typer.Option(help="Results, without suffix.")] = RESULTS / "keyframes",
) -> None:
    """Measure, print, write; exit code 1 when a target is missed."""
    seeds = seed or SEEDS
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    clips: list[Clip] = []
    if videos is not None:
        clips = real_clips(videos, sorted((videos / "truth").glob("*.json")))
        if not clips:
            raise typer.BadParameter(f"no clip that {videos / 'truth'} tells of lies in {videos}")
    with TemporaryDirectory() as folder:
        made = synthetic_clips(Path(folder), seeds if synthetic else ())
        total = len(clips) + len(seeds) * len(KINDS) * synthetic
        scores: list[Score] = []
        for clip in track(chain(clips, made), "clips", total):
            scores += measure(clip)
            scores += measure(clip, sampled_fps)
    if not scores:
        raise typer.BadParameter("there is nothing to measure without clips")
    rates = dict.fromkeys(score.rate for score in scores)
    scores.sort(key=lambda score: list(rates).index(score.rate))
    about = {
        **describe(),
        "clips": "made by the bench" + (", and real ones" if videos else ""),
        "matched within": f"{TOLERANCE_SECONDS} s",
        "thresholds were chosen on": TUNED_ON,
    }
    write_down(out, scores, about)
    print("\n".join([*report(scores), "", *judged(targets(scores), OURS)]))
    raise typer.Exit(0 if all(target.is_met for target in targets(scores)) else 1)


if __name__ == "__main__":
    typer.run(main)
