"""Tokens kept against right answers: every strategy of the token pruner at several budgets, beside
no pruning.

    python -m bench.prune --clips 120 --minutes 60

On short clips of the demo world, which also tell how near the LLM's last hidden state stays to that
without pruning (cosine, where the answer begins), and on two streams: a surveillance-like one (one
background, now and then something appears) and the busy one of `bench.recall`, with its questions.
All settings see the same frames in one run, encoded once; those with "reuse" send them through a
tower whose work is used again. Writes JSON, Markdown and plots into `bench/results/`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from rich.progress import Progress
from torch.nn.functional import cosine_similarity

from bench.asked import Asked, Asker, long_stream
from bench.machine import describe
from bench.prune_report import BUSY, CALM, CLIPS, NONE, REUSE, Asking, Seeing, Setting, write
from bench.recall import knobs, plain, progress
from bench.rivals.pruners import RIVALS, PrunedByRival
from config import Config, PruneConfig
from errors import Notice
from frames import Frame, in_parts
from keyframes.frame_group import FrameGroup
from keyframes.reuse import FeatureReuse
from memory.chunk import KVChunk
from models.qwen3_vl import Qwen3VL
from models.video_llm import VideoLLM, VisualGroup
from streaming.engine import Engine, load_engine
from streaming.events import Answer
from streaming.ingest import Ingest, PrefillWork, encode_groups
from streaming.session import Session
from streaming.time_query.spans import in_seconds, stamp_of
from training.evaluate import Clip, make_clip
from training.scenes import FPS, GROUP_SECONDS
from training.streams import Stream

RESULTS = Path(__file__).parent / "results"
STRATEGIES = ("novelty", *RIVALS)
BUDGETS = (0.5, 0.375, 0.25)


class EncodedOnce:
    """A model whose vision tower sees the same frames once, however many sessions hand them
    over.
    """

    def __init__(self, model: VideoLLM) -> None:
        self._model = model
        # of the newest frames, by the first frame of each
        self._groups: dict[int, VisualGroup] = {}
        # kept alive, so that what they are known by stays theirs
        self._frames: Sequence[Frame] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def see(self, frames: Sequence[Frame]) -> None:
        self._frames = frames
        self._groups = dict(
            zip(map(id, frames[:: self.frames_per_group]), self._model.encode(frames), strict=True)
        )

    def encode_groups(
        self, groups: Sequence[FrameGroup], reuse: FeatureReuse | None = None
    ) -> list[VisualGroup]:
        if reuse is not None:
            return self._model.encode_groups(groups, reuse)
        return [self._groups[id(group.frames[0])] for group in groups]


def ask_clip(
    model: Qwen3VL, clip: Clip, config: Config, settings: Sequence[Setting]
) -> Iterator[Asking | Seeing]:
    """One short clip under all settings; its hidden chunks are prefilled and not shown, as recall
    would.
    """
    once = EncodedOnce(model)
    states: dict[str, torch.Tensor] = {}
    once.see([frame for part in clip.frames for frame in part])
    for setting in settings:
        groups = prune_clip(clip, cast(VideoLLM, once), setting)
        chunks = remembered(model, groups, config.memory.prefill_chunks)
        yield seen_of(clip, groups, chunks, setting)
        shown = [
            c
            for c, stored in zip(chunks, clip.chunks, strict=True)
            if c is not None and not stored.hidden
        ]
        context, starts = (
            [model.prefix(), *shown],
            [start for chunk in shown for start in chunk.group_starts],
        )
        for question in clip.questions:
            words = in_seconds(
                question.text, partial(stamp_of, group_starts=starts, group_seconds=GROUP_SECONDS)
            )
            said = "".join(model.answer(words, context, (), config.answer))
            state = model.last_state(words, context)
            near = float(cosine_similarity(state, states.setdefault(question.text, state), dim=0))
            told = (question.group, question.text, question.answer, said)
            yield Asking(
                CLIPS,
                setting.name,
                setting.prune.budget,
                *told,
                plain(said) == plain(question.answer),
                near,
            )


def prune_clip(clip: Clip, model: VideoLLM, setting: Setting) -> list[list[VisualGroup]]:
    """What goes on of each chunk. Pruning and reuse begin anew behind a gap and behind a hidden
    chunk: nothing else shows what that one kept."""
    parts: list[list[VisualGroup]] = []
    for number, frames in enumerate(clip.frames):
        if not number or not follows(clip, number):
            ingest = Ingest(
                pruned_by_rival(model, setting), Config(reuse=setting.reuse, prune=setting.prune)
            )
        work = PrefillWork(ingest, ingest.prepare_alone(frames), [], [], 0, 0)
        parts += encode_groups(ingest.model, [work])[0]
    return parts


def pruned_by_rival(model: VideoLLM, setting: Setting) -> VideoLLM:
    """The model for one stream under this setting; itself where ours prunes, or nothing does."""
    if not setting.rival:
        return model
    return cast(VideoLLM, PrunedByRival(model, RIVALS[setting.rival](setting.prune.budget)))


def follows(clip: Clip, number: int) -> bool:
    """Whether a chunk goes on where the one before ended, which is shown as well."""
    before, chunk = clip.chunks[number - 1 : number + 1]
    return not before.hidden and chunk.groups[0] == before.groups[-1] + 1


def remembered(
    model: VideoLLM, groups: Sequence[list[VisualGroup]], reach: int
) -> list[KVChunk | None]:
    """Chunk by chunk, each in view of the `reach` chunks before it; None where nothing went on."""
    chunks: list[KVChunk] = []
    found: list[KVChunk | None] = []
    for part in groups:
        if part:
            chunks.append(
                model.prefill(
                    part, [model.prefix(), *(chunks[-reach:] if reach else [])], len(chunks)
                )
            )
        found.append(chunks[-1] if part else None)
    return found


def seen_of(
    clip: Clip,
    groups: Sequence[list[VisualGroup]],
    chunks: Sequence[KVChunk | None],
    setting: Setting,
) -> Seeing:
    kept = sum(len(group.embeddings) for part in groups for group in part)
    whole = sum(len(chunk.groups) for chunk in clip.chunks) * math.prod(groups[0][0].grid)
    seconds, kv_bytes = (
        sum(map(len, clip.frames)) / FPS,
        sum(chunk.memory_bytes for chunk in chunks if chunk),
    )
    return Seeing(CLIPS, setting.name, setting.prune.budget, seconds, whole, kept, kv_bytes)


def calm_stream(seed: int, seconds: float) -> Stream:
    """One background throughout, and every other scene one event, or none."""
    stream = long_stream(seed, seconds)
    background = stream.scenes[0].background_seed
    scenes = [
        replace(scene, background_seed=background, events=scene.events[:1] if k % 2 else ())
        for k, scene in enumerate(stream.scenes)
    ]
    return replace(stream, scenes=tuple(scenes))


@dataclass(frozen=True, eq=False)
class Watching:
    """A stream of one kind, watched by one session for each setting."""

    footage: str
    stream: Stream
    engine: Engine
    settings: Sequence[Setting]
    questions: int
    side: int

    def run(self, seed: int, bar: Progress) -> Iterator[Asking | Seeing]:
        once = EncodedOnce(self.engine.model)
        sessions = [self._open(once, setting) for setting in self.settings]
        waiting = Asker(self.stream, seed).all(self.questions)
        read, size = self.engine.config.read, self.engine.config.memory.chunk_frames
        frames = round(self.stream.duration_seconds * read.fps)
        task = bar.add_task(self.footage, total=-(-frames // size) + len(waiting))
        for part in in_parts(self.stream.frames(self.side, read.fps), size):
            once.see(part)
            for session in sessions:
                watch(session, part)
            bar.advance(task)
            while waiting and waiting[0].at_seconds <= part[-1].pts_seconds + 1 / read.fps:
                asked = waiting.pop(0)
                for session, setting in zip(sessions, self.settings, strict=True):
                    yield self._asking(session, setting, asked)
                bar.advance(task)
        for session, setting in zip(sessions, self.settings, strict=True):
            yield self._seeing(session, setting)
            session.close()

    def _open(self, once: EncodedOnce, setting: Setting) -> Session:
        config = replace(self.engine.config, prune=setting.prune, reuse=setting.reuse)
        model = pruned_by_rival(cast(VideoLLM, once), setting)
        return Engine(model, self.engine.profile, config).open()

    def _asking(self, session: Session, setting: Setting, asked: Asked) -> Asking:
        question = asked.question
        said = next(event.text for event in session.ask(question.text) if isinstance(event, Answer))
        right = plain(said) == plain(question.answer)
        told = (asked.kind, question.text, question.answer, said, right, None)
        return Asking(self.footage, setting.name, setting.prune.budget, *told)

    def _seeing(self, session: Session, setting: Setting) -> Seeing:
        stats, seconds = session.stats, self.stream.duration_seconds
        before, kept = stats.visual_tokens + stats.pruned_tokens, stats.visual_tokens
        kv_bytes = session.memory.num_tokens * bytes_per_token(session)
        return Seeing(
            self.footage, setting.name, setting.prune.budget, seconds, before, kept, kv_bytes
        )


def watch(session: Session, part: Sequence[Frame]) -> None:
    for event in session.watch(part, ahead=True):
        if isinstance(event, Notice):
            raise RuntimeError(event.text)


def bytes_per_token(session: Session) -> int:
    newest = session.memory.newest
    return newest.memory_bytes // newest.num_tokens


def settings_of(strategies: str, budgets: str, own: PruneConfig) -> list[Setting]:
    """Nothing left out first, then every strategy with every budget, then reuse without and with
    the model's `own` pruning."""
    shares = [float(share) for share in filter(None, budgets.split(","))]
    settings = [Setting()]
    for name in filter(None, strategies.split(",")):
        for share in shares:
            if name in RIVALS:
                settings.append(Setting(PruneConfig("none", share), rival=name))
            else:
                settings.append(Setting(PruneConfig(name, share)))
    return [*settings, *(Setting(prune, REUSE) for prune in (NONE, own))]


def main(
    model: Annotated[str, typer.Option(help="demo, a folder or a hub id.")] = "demo",
    clips: Annotated[int, typer.Option(help="Short clips.", min=0)] = 120,
    minutes: Annotated[float, typer.Option(help="Length of each stream; 0 for none.", min=0)] = 60,
    questions: Annotated[int, typer.Option(help="Questions of each kind and stream.", min=1)] = 24,
    strategies: Annotated[str, typer.Option(help="With commas between.")] = ",".join(STRATEGIES),
    budgets: Annotated[str, typer.Option(help="Shares of a group's tokens.")] = ",".join(
        map(str, BUDGETS)
    ),
    seed: Annotated[int, typer.Option(help="Of clips and streams.")] = 0,
    side: Annotated[int, typer.Option(help="Pixels of a painted frame of the streams.")] = 128,
    memory: Annotated[
        str, typer.Option(help="Memory settings: recall_chunks=4,window_chunks=1.")
    ] = "",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path, typer.Option(help="Where the results go; files of this name.")] = RESULTS
    / "prune",
) -> None:
    """Measure what pruning keeps of tokens and of right answers."""
    torch.set_grad_enabled(False)
    engine = load_engine(
        model, device, settings={"answer": {"dialogue_turns": 0}, "memory": knobs(memory)}
    )
    if not isinstance(engine.model, Qwen3VL):
        raise typer.BadParameter(f"{model} does not give its hidden states")
    settings = settings_of(strategies, budgets, engine.config.prune)
    about = {
        **describe(),
        "model": engine.model.model_id,
        "seed": seed,
        "clips": clips,
        "minutes": minutes,
    }
    about |= {
        "still below": NONE.still_below,
        "refresh seconds": NONE.refresh_seconds,
        "frame side": side,
    }
    about |= {"memory": vars(engine.config.memory).copy()}
    found: list[Asking | Seeing] = []
    with progress() as bar:
        for number in bar.track(range(clips), description=CLIPS):
            found += ask_clip(engine.model, make_clip(seed, number), engine.config, settings)
        for footage, make in ((CALM, calm_stream), (BUSY, long_stream)) if minutes else ():
            watching = Watching(
                footage, make(seed, 60 * minutes), engine, settings, questions, side
            )
            found += watching.run(seed, bar)
            write(out, found, about, engine.config.prune.budget)
    print("\n".join(write(out, found, about, engine.config.prune.budget)))


if __name__ == "__main__":
    typer.run(main)
