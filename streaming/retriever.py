"""From a question to what it is answered from: times, scores, the plan, its chunks.

    question -> times in seconds -> named spans  \
             -> queries of the heads -> scores    > plan -> fitted to the budget -> chunks, evidence

Changes nothing: a session calls it under its lock, on the device's thread. Knows nothing of how an
answer is generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from config import Config
from errors import LonglookError, Notice
from frames import Gap
from memory.chunk import KVChunk
from memory.disk_tier import ChunkLostError
from memory.kv_memory import KVMemory
from memory.mass import as_scores, attention_mass, candidates
from memory.recall_policy import (
    RecallPlan,
    evidence,
    fit,
    numbered_from,
    plan_recall,
    without_dense,
)
from memory.timeline import Timeline
from models.calibration import Profile
from models.video_llm import Turn, VideoLLM
from streaming.events import Evidence
from streaming.time_query.spans import Span, chunk_ranges, in_seconds, named_spans, stamp_of
from streaming.time_query.wall_clock import WallClock, rewrite_wall_times

LONGEST_FRAME_SECONDS = 1.0  # that the newest frame is said to have been shown


@dataclass(frozen=True, eq=False)
class Retrieved:
    """What one question is answered from.

    question: as the model gets it. context: the prefix and the plan's chunks, in time order.
    evidence: for people, best first.
    """

    question: str
    plan: RecallPlan
    context: Sequence[KVChunk]
    evidence: Sequence[Evidence]


class Retriever:
    """Finds what a question is about in one stream's memory."""

    def __init__(
        self, model: VideoLLM, profile: Profile | None, memory: KVMemory, config: Config
    ) -> None:
        """profile: the heads that retrieve; None: attention over all heads chooses."""
        self._model = model
        self._profile = profile
        self._memory = memory
        self._config = config

    def retrieve(self, question: str, now_seconds: float, dialogue: Sequence[Turn]) -> Retrieved:
        """What a question asked at `now_seconds` of the stream is answered from.

        A chunk that turns out to be lost on the disk is planned without. Raises LonglookError where
        nothing is left.
        """
        while True:
            try:
                plan = self.plan(question, now_seconds, dialogue)
                context = self._load(plan)
                break
            except ChunkLostError:
                continue
        if not plan.chunks:
            raise LonglookError("nothing of what was watched can be read or fits any more")
        stop_seconds = now_seconds + min(1 / self._config.read.fps, LONGEST_FRAME_SECONDS)
        shown = evidence_of(plan, self._memory.spans(), stop_seconds, self._memory.first_chunk)
        return Retrieved(self.normalize_times(question, now_seconds), plan, context, shown)

    def plan(self, question: str, now_seconds: float, dialogue: Sequence[Turn]) -> RecallPlan:
        """What comes back for the question: named times and the chunks whose keys it looks for,
        with the window.
        """
        memory, spans, first = self._config.memory, self._memory.spans(), self._memory.first_chunk
        named = chunk_ranges(named_spans(question, now_seconds), spans, has_beginning=first == 0)
        if self._answers_from_window(question, named, now_seconds, dialogue):
            plan = plan_recall(None, [], len(spans), memory.window_chunks, recall_chunks=0)
        else:
            budgets = memory.window_chunks, memory.recall_chunks, memory.sparse_chunks
            scores = self._scores(self.normalize_times(question, now_seconds), named)
            gone = {index - first for index in self._memory.damaged}
            plan = plan_recall(
                scores, named, len(spans), *budgets, gone=gone, margin=memory.recall_margin
            )
        plan = numbered_from(plan, first)
        plan = without_dense(
            plan, [index for index in plan.indices if self._memory.is_sparse_only(index)]
        )
        return fit(
            plan, self._memory.sizes, memory.context_tokens - self._model.prefix().num_tokens
        )

    def _scores(self, question: str, named: Sequence[range]) -> list[float] | None:
        """Evidence per remembered chunk: by retrieval heads, else by attention mass on the sparse
        level of a sample.

        named: of each named time the chunks, counted from the first that is remembered.
        """
        memory, first, index = self._config.memory, self._memory.first_chunk, self._memory.index
        num_chunks, num_damaged = self._memory.num_chunks - first, len(self._memory.damaged)
        if index is not None and self._profile is not None:
            queries = self._profile.queries_of(self._model, question)
            near = {
                first + i
                for r in named
                for i in range(max(0, r.start - 1), min(num_chunks, r.stop + 1))
            }
            limit = memory.recall_chunks + memory.window_chunks + num_damaged
            return evidence(index.search(queries, limit, also=near), self._profile.norms)
        looked_at = [
            i
            for i in candidates(num_chunks - memory.window_chunks)
            if not self._memory.is_evicted(first + i)
        ]
        if len(looked_at) <= memory.recall_chunks:
            return None  # all of them come back anyway
        levels = (self._sparse(chunk) for i in looked_at for chunk in self._memory.get([first + i]))
        return as_scores(
            attention_mass(self._model.all_question_queries(question), levels),
            looked_at,
            num_chunks,
        )

    def _answers_from_window(
        self,
        question: str,
        named: Sequence[range],
        now_seconds: float,
        dialogue: Sequence[Turn],
    ) -> bool:
        """Whether recall is left out: recent first, as long as no time is named and the model is
        sure.
        """
        memory = self._config.memory
        if memory.recall != "auto" or named:
            return memory.recall == "never"
        context = [self._model.prefix(), *self._memory.window()]
        words = self.normalize_times(question, now_seconds)
        return self._model.doubt(words, context, dialogue) < memory.sure_below

    def normalize_times(self, question: str, now_seconds: float) -> str:
        """The question as the model gets it: times in seconds, each one that of the group that
        shows what was then.
        """
        return in_seconds(question, partial(self._shown_at, now_seconds), now_seconds)

    def _shown_at(self, now_seconds: float, seconds: float) -> float:
        """The time of the group that shows what was to be seen at `seconds`."""
        if seconds > now_seconds:
            return seconds
        first = self._memory.first_chunk
        (around,) = chunk_ranges(
            [Span(seconds, seconds + 1)], self._memory.spans(), has_beginning=first == 0
        )
        starts = [start for index in around for start in self._memory.group_starts(first + index)]
        return stamp_of(seconds, starts, self._model.frames_per_group / self._config.read.fps)

    def _load(self, plan: RecallPlan) -> list[KVChunk]:
        """The prefix and the plan's chunks at their levels, in time order."""
        chunks = self._memory.get(plan.indices)
        levels = (
            chunk if planned.level == "dense" else self._sparse(chunk, self._config.memory.sparse)
            for chunk, planned in zip(chunks, plan.chunks, strict=True)
        )
        return [self._model.prefix(), *levels]

    def _sparse(self, chunk: KVChunk, sparse: str = "pooled") -> KVChunk:
        """The sparse level of a chunk from memory, which may be it already."""
        if self._memory.is_sparse_only(chunk.index):
            return chunk
        return chunk.pooled() if sparse == "pooled" else chunk.salient()


def in_stream_time(
    question: str, timeline: Timeline, now_seconds: float
) -> tuple[str, list[Notice]]:
    """The question with times by the clock on the wall as seconds of a live stream, and what to
    say of times when nothing was watched.
    """
    timeline.refresh()
    began = timeline.wall_at(0.0)
    if began is None:
        return question, []
    clock = WallClock(
        datetime.now().astimezone(),
        datetime.fromtimestamp(began).astimezone(),
        lambda wall_seconds: timeline.seconds_at(wall_seconds) or 0.0,
        now_seconds,
    )
    rewritten = rewrite_wall_times(question, clock)
    seen_at = timeline.wall_at(now_seconds) or began
    if not rewritten.periods or any(
        start.timestamp() <= seen_at and began <= stop.timestamp()
        for start, stop in rewritten.periods
    ):
        return rewritten.question, []
    first, last = (datetime.fromtimestamp(at) for at in (began, seen_at))
    text = (
        f"Nothing was watched then: this session has seen {first:%Y-%m-%d %H:%M:%S} to "
        f"{last:%Y-%m-%d %H:%M:%S}."
    )
    return rewritten.question, [Notice(text)]


def gaps_near(evidence: Sequence[Evidence], timeline: Timeline) -> tuple[Gap, ...]:
    """The gaps that the evidence touches, each once, in order."""
    timeline.refresh()
    found = [
        gap for item in evidence for gap in timeline.touching(item.start_seconds, item.stop_seconds)
    ]
    return tuple(sorted(set(found), key=lambda gap: gap.start_seconds))


def evidence_of(
    plan: RecallPlan, spans: Sequence[tuple[float, float]], now_seconds: float, first_chunk: int = 0
) -> tuple[Evidence, ...]:
    """What an answer rests on: named times first, then by score; in a tie what was recalled before
    the window.

    Chunks side by side are one stretch where a time was named, and in the window. Those recalled
    stay apart, since each was found for itself. A chunk lasts until the next one starts, the newest
    until now.
    """
    found: list[Evidence] = []
    for chunk in (chunk for chunk in plan.chunks if chunk.why not in ("beside", "sample")):
        place = chunk.index - first_chunk  # of `spans`, which begin with that chunk
        stop_seconds = spans[place + 1][0] if place + 1 < len(spans) else now_seconds
        new = Evidence(spans[place][0], stop_seconds, chunk.score, chunk.why, chunk.level)
        if found and _are_one(found[-1], new):
            last = found.pop()
            new = replace(new, start_seconds=last.start_seconds, score=max(last.score, new.score))
        found.append(new)
    return tuple(sorted(found, key=lambda e: (e.why != "named time", -e.score, e.why == "recent")))


def _are_one(earlier: Evidence, later: Evidence) -> bool:
    same = (earlier.why, earlier.level) == (later.why, later.level)
    return same and later.why != "recalled" and earlier.stop_seconds == later.start_seconds
