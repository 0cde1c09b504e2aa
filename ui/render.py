"""Events as text and pictures: pure functions from small records to Markdown, HTML and gallery items.

Whatever comes from outside (file names, sentences of errors) is escaped here. Knows nothing of Gradio, sessions or
threads; times are seconds, shown as mm:ss or h:mm:ss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from numpy.typing import NDArray

from streaming.events import Answer, AnswerPiece, AskEvent, Evidence, Stats, Thumbnail

GalleryItem = tuple[NDArray[np.uint8], str]


@dataclass(frozen=True, eq=False)
class Progress:
    """How far the watching of one video has come.

    state: "watching", "watched" or "failed"; `problem` says why it failed, in a sentence.
    duration_seconds: length of the video as its container states it, 0 where it does not.
    strip: thumbnails of keyframes in time order, bounded.
    """

    title: str
    state: str = "watching"
    pts_seconds: float = 0.0
    duration_seconds: float = 0.0
    stats: Stats = field(default_factory=Stats)
    strip: tuple[Thumbnail, ...] = ()
    notices: tuple[str, ...] = ()
    problem: str = ""


def clock(seconds: float) -> str:
    """`seconds` as mm:ss, from an hour on h:mm:ss; fractions are cut off."""
    whole = max(0, int(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def span(evidence: Evidence) -> str:
    """The stretch of an evidence, "00:42–00:58"; one time where both ends read alike."""
    start, stop = clock(evidence.start_seconds), clock(evidence.stop_seconds)
    return start if start == stop else f"{start}–{stop}"


def size(num_bytes: int) -> str:
    """Bytes for people, in powers of 1000: "512 B", "8.4 MB"."""
    value, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"


def counters(stats: Stats) -> list[tuple[str, str]]:
    """What a session has done so far, as (name, value) in the order shown."""
    return [
        ("frames read", f"{stats.frames_read:,}"),
        ("chunks", f"{stats.chunks:,}"),
        ("tokens", f"{stats.tokens:,}"),
        ("device memory", size(stats.device_bytes)),
        ("host memory", size(stats.host_bytes)),
    ]


def progress_html(progress: Progress) -> str:
    """The card below the player: what is going on, a bar, the counters, notices."""
    if progress.state == "failed":
        return f'<div class="look-card look-bad" role="alert">{escape(progress.problem)}</div>'
    cells = "".join(
        f'<div class="look-counter"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for name, value in counters(progress.stats)
    )
    notices = "".join(f'<p class="look-notice">{escape(text)}</p>' for text in progress.notices)
    return (
        f'<div class="look-card look-{progress.state}"><p class="look-headline">{escape(headline(progress))}</p>'
        f'<div class="look-bar"><div style="width:{100 * fraction(progress):.1f}%"></div></div>'
        f'<div class="look-counters">{cells}</div>{notices}</div>'
    )


def headline(progress: Progress) -> str:
    """One line on the state: "Watching clip.mp4: 00:42 of 01:00"."""
    if progress.state == "watched":
        took = f" in {progress.stats.watch_seconds:.1f} s" if progress.stats.watch_seconds else ""
        return f"Watched {progress.title} to its end at {clock(progress.pts_seconds)}{took}. Ask anything about it."
    of = f" of {clock(progress.duration_seconds)}" if progress.duration_seconds else ""
    return f"Watching {progress.title}: {clock(progress.pts_seconds)}{of}. You can ask already."


def fraction(progress: Progress) -> float:
    """How much has been watched, in [0, 1]; 0 while the duration is unknown."""
    if progress.state == "watched":
        return 1.0
    return min(1.0, progress.pts_seconds / progress.duration_seconds) if progress.duration_seconds > 0 else 0.0


def problem_sentence(problem: str, path: str, title: str) -> str:
    """An error's sentence with the file's name in place of where the server keeps it."""
    return problem.replace(path, title)


def answer_markdown(answer: Answer) -> str:
    """A finished answer for the chat, with the times it rests on in a small line below."""
    times = ", ".join(span(item) for item in in_time_order(answer.evidence))
    return f"{answer.text}\n\n*looked at {times}*" if times else answer.text


def evidence_row(evidence: Evidence) -> tuple[str, str, str]:
    """(span, why, score) for a table; a stretch that was not searched for has no score to show."""
    why = evidence.why if evidence.level == "dense" else f"{evidence.why}, sparse"
    return span(evidence), why, f"{evidence.score:.2f}" if evidence.why == "recalled" else ""


def evidence_label(evidence: Evidence) -> str:
    """The same in one line, for a button: "00:42–00:58 · recalled · 0.91"."""
    return " · ".join(filter(None, evidence_row(evidence)))


def in_time_order(evidence: Iterable[Evidence]) -> list[Evidence]:
    return sorted(evidence, key=lambda item: item.start_seconds)


def gallery(strip: Sequence[Thumbnail]) -> list[GalleryItem]:
    """Thumbnails with their times as captions."""
    return [(thumbnail.image, clock(thumbnail.pts_seconds)) for thumbnail in strip]


def extended(strip: tuple[Thumbnail, ...], new: Thumbnail, limit: int) -> tuple[Thumbnail, ...]:
    """`strip` with `new` at its end, never longer than `limit` and evenly spread.

    The one given up is the inner one whose neighbours lie closest together, so the first and the newest always stay.
    """
    if limit < 2:
        raise ValueError(f"a strip needs room for its first and its newest picture, not for {limit}")
    longer = (*strip, new)
    if len(longer) <= limit:
        return longer
    times = [thumbnail.pts_seconds for thumbnail in longer]
    drop = min(range(1, len(longer) - 1), key=lambda i: times[i + 1] - times[i - 1])
    return longer[:drop] + longer[drop + 1 :]


def paced(
    events: Iterable[AskEvent], interval_seconds: float, now: Callable[[], float]
) -> Iterator[tuple[str, Answer | None]]:
    """The growing text of an answer, at most once per interval; last the final text with its `Answer`."""
    text, shown_at = "", -interval_seconds
    for event in events:
        if isinstance(event, AnswerPiece):
            text += event.text
            if now() - shown_at >= interval_seconds:
                shown_at = now()
                yield text, None
        elif isinstance(event, Answer):
            yield event.text, event
