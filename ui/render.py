"""Events as text and HTML: pure functions from small records to what a person reads.

Whatever comes from outside (file names, questions, answers, sentences of errors) is escaped here.
Times are seconds, shown as m:ss or h:mm:ss. An element with `data-seek` moves the player when it is
clicked, see `page.js`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from streaming.events import Evidence, Stats
from streaming.time_query.expressions import clock as clock
from ui.conversation import MAX_QUESTION_CHARACTERS, Turn

WEAK_SCORE = 1.0  # standard deviations; up to here a match is no better than chance brings
BEST_SHARE = 0.5  # of the best score, which a stretch must have as well
MAX_PICTURES = 4  # evidence shown with a picture; the rest is listed below in small type
SPOKEN_SECONDS = re.compile(
    r"\b(at|from|to|until|around|about) (\d{1,6}) seconds?\b", re.IGNORECASE
)
CLOCK = re.compile(r"\b(?:(\d{1,3}):)?(\d{1,2}):([0-5]\d)\b")
SHOW_SECONDS = 4.0  # how long a time in the text is played when it is clicked
DEMO_WARNING = (
    "The demo model knows only coloured shapes and digits. "
    "Its answers about a real video are wrong."
)
VIDEO_SUFFIXES = ".mp4,.m4v,.mov,.mkv,.webm,.avi,.ts,.mts,.mpg,.mpeg,.wmv,.flv,.ogv,.3gp"


KEYFRAME_TITLES = {
    "head": "The beginning",
    "cut": "A new shot",
    "change": "Most of the picture has changed",
    "gap": "Nothing has happened for long",
    "tail": "The end",
}


@dataclass(frozen=True)
class StripPicture:
    """A keyframe in the strip: when and of which kind it is, and the URL of its picture."""

    pts_seconds: float
    url: str
    kind: str = "head"


@dataclass(frozen=True)
class ModelInfo:
    """What the page says about the loaded model.

    is_demo: the embedded one, which knows coloured shapes and digits only.
    """

    name: str
    is_demo: bool


@dataclass(frozen=True, eq=False)
class Progress:
    """How far the watching of one video has come.

    state: "watching", "stopped", "watched" or "failed"; `problem` is a sentence that says why.
    duration_seconds: length of the video as its container states it, 0 where it does not.
    strip: thumbnails in time order, bounded.
    is_upload: the user's own video, not a bundled sample.
    """

    title: str
    state: str = "watching"
    pts_seconds: float = 0.0
    duration_seconds: float = 0.0
    stats: Stats = field(default_factory=Stats)
    strip: tuple[StripPicture, ...] = ()
    notices: tuple[str, ...] = ()
    problem: str = ""
    is_upload: bool = False


def span(evidence: Evidence) -> str:
    """The stretch of an evidence, "0:42–0:58"; one time if both ends read alike."""
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


def counters(stats: Stats) -> list[tuple[str, str, str]]:
    """What a session has done so far, as (name, value, explanation) in the order shown."""
    return [
        ("frames read", f"{stats.frames_read:,}", "Frames of the video that were looked at"),
        ("keyframes", f"{stats.keyframes:,}", "Cuts, changes, and one in every long still stretch"),
        ("chunks", f"{stats.chunks:,}", "A chunk is a few seconds of video, remembered together"),
        ("tokens", f"{stats.tokens:,}", "Everything in memory, counted in tokens of the model"),
        ("device memory", size(stats.device_bytes), "Memory of the newest chunks, bounded"),
        ("host memory", size(stats.host_bytes), "Memory of the older chunks"),
    ]


def head_html(model: ModelInfo) -> str:
    """Name, one sentence, and the model with what it can and cannot do."""
    name = escape(model.name)
    if model.is_demo:
        banner = (
            '<div class="look-model look-demo" role="note"><b>Demo model</b>'
            "<span>It knows only coloured shapes and digits. For real videos, start longlook "
            "with a real model: <code>longlook serve --model Qwen/Qwen3-VL-4B-Instruct</code>"
            "</span></div>"
        )
    else:
        banner = f'<div class="look-model" role="note"><b>Model</b><span>{name}</span></div>'
    return (
        "<h1>longlook</h1><p>Watches a video of any length, remembers it, and answers questions "
        f"about any moment.</p>{banner}"
    )


def sources_html(samples: Sequence[str]) -> str:
    """The buttons that open a video, and the line that tells of an upload."""
    picks = "".join(
        f'<button type="button" data-sample="{i}">Sample: {escape(name)}</button>'
        for i, name in enumerate(samples)
    )
    return (
        '<div class="look-row"><button type="button" class="look-primary" data-open>Open video…'
        f'</button><input type="file" accept="video/*,{VIDEO_SUFFIXES}" hidden '
        f'aria-label="Open video">{picks}</div>'
        '<p class="look-upload" role="status"><span></span>'
        '<button type="button" data-cancel hidden>Cancel</button></p>'
    )


def player_html(url: str) -> str:
    """The video, or where to drop one."""
    if not url:
        return '<div class="look-drop">Drop a video here, open one, or pick a sample.</div>'
    return (
        f'<video src="{escape(url)}" controls playsinline preload="auto"></video>'
        '<p class="look-unplayable">Your browser cannot play this video, but longlook can watch '
        "it. See the pictures below.</p>"
    )


def progress_html(
    progress: Progress | None, model: ModelInfo, marks: Iterable[Evidence] = ()
) -> str:
    """The card below the player: what is going on, a timeline, the counters, notices.

    marks: stretches to mark on the timeline, the evidence of the newest answer.
    """
    if progress is None:
        return '<div class="look-card"><p class="look-headline">No video is open.</p></div>'
    if progress.state == "failed" and not progress.stats.chunks:
        return f'<div class="look-card look-bad" role="alert">{escape(progress.problem)}</div>'
    cells = "".join(
        f'<div class="look-counter" title="{escape(why)}"><b>{escape(value)}</b>'
        f"<span>{escape(name)}</span></div>"
        for name, value, why in counters(progress.stats)
    )
    notices = [*progress.notices, progress.problem]
    lines = "".join(f'<p class="look-notice">{escape(text)}</p>' for text in notices if text)
    if model.is_demo and progress.is_upload:
        lines = f'<p class="look-notice look-demo">{DEMO_WARNING}</p>{lines}'
    stop = (
        '<button type="button" data-stop-watching>Stop</button>'
        if progress.state == "watching"
        else ""
    )
    return (
        f'<div class="look-card look-{progress.state}"><div class="look-state">'
        f'<p class="look-headline">{escape(headline(progress))}</p>{stop}</div>'
        f"{timeline_html(progress, marks)}"
        f'<div class="look-counters">{cells}</div>{lines}</div>'
    )


def timeline_html(progress: Progress, marks: Iterable[Evidence]) -> str:
    """How much of the video has been watched, with marks; a click moves the player."""
    duration = max(progress.duration_seconds, progress.pts_seconds)
    spots = ""
    if duration:
        for item in marks:
            left = 100 * item.start_seconds / duration
            width = 100 * (item.stop_seconds - item.start_seconds) / duration
            spots += f'<i style="left:{left:.2f}%;width:{width:.2f}%" title="{span(item)}"></i>'
    return (
        f'<div class="look-bar" role="progressbar" aria-label="Watched" '
        f'aria-valuenow="{100 * fraction(progress):.0f}" data-duration="{duration:.2f}">'
        f'<div style="width:{100 * fraction(progress):.1f}%"></div>{spots}</div>'
    )


def headline(progress: Progress) -> str:
    """One line on the state: "Watching clip.mp4: 0:42 of 1:00"."""
    length = clock(progress.duration_seconds)
    if progress.state == "watched":
        took = (
            f" in {progress.stats.watch_seconds:.0f} s" if progress.stats.watch_seconds >= 1 else ""
        )
        whole = length if progress.duration_seconds else clock(progress.pts_seconds)
        return f"Finished {progress.title} ({whole}){took}"
    so_far = clock(progress.pts_seconds) + (f" of {length}" if progress.duration_seconds else "")
    if progress.state == "watching":
        return f"Watching {progress.title}: {so_far}"
    return f"Stopped watching {progress.title} at {so_far}"


def fraction(progress: Progress) -> float:
    """How much has been watched, in [0, 1]; 0 while the duration is unknown."""
    if progress.state == "watched":
        return 1.0
    return (
        min(1.0, progress.pts_seconds / progress.duration_seconds)
        if progress.duration_seconds > 0
        else 0.0
    )


def problem_sentence(problem: str, path: str, title: str) -> str:
    """An error's sentence with the file's name in place of where the server keeps it."""
    return problem.replace(path, title)


def strip_html(strip: Sequence[StripPicture]) -> str:
    """Small pictures of what was seen, each a button that moves the player there."""
    pictures = "".join(
        f'<button type="button" data-seek="{item.pts_seconds:.3f}" '
        f'title="{KEYFRAME_TITLES.get(item.kind, "")}" '
        f'aria-label="Go to {clock(item.pts_seconds)}"><img src="{escape(item.url)}" alt="">'
        f"<span>{clock(item.pts_seconds)}</span></button>"
        for item in strip
    )
    return f'<div class="look-strip">{pictures}</div>'


def suggestions_html(questions: Sequence[str]) -> str:
    """Questions that are asked with one click."""
    buttons = "".join(
        f'<button type="button" data-ask>{escape(text)}</button>' for text in questions
    )
    return f'<div class="look-row">{buttons}</div>'


def question_box_html() -> str:
    """The form for questions. It is rendered once and never again: what is typed stays."""
    return (
        '<form><p class="look-unsent" role="alert"></p><div class="look-box">'
        '<textarea rows="1" aria-label="Your question" '
        f'maxlength="{MAX_QUESTION_CHARACTERS}" '
        'placeholder="Ask about any moment"></textarea>'
        '<button type="submit" class="look-primary" aria-label="Ask">Ask</button></div></form>'
    )


def chat_html(turns: Sequence[Turn], progress: Progress | None) -> str:
    """All questions with their answers, each answer with its own evidence."""
    if not turns:
        return (
            '<div class="look-empty"><p>Ask even while it is still watching: when something '
            "happened, what was shown at a time, how many there were, or in which order.</p></div>"
        )
    progress = progress or Progress("")
    waiting = [turn.number for turn in turns if turn.is_open]
    return "".join(
        turn_html(turn, progress, waiting.index(turn.number) if turn.is_open else 0)
        for turn in turns
    )


def unanswered_html(number: int, question: str, why_not: str) -> str:
    """A question asked when no video is open."""
    return turn_html(Turn(number, question, "failed", why_not), Progress(""), 0)


def turn_html(turn: Turn, progress: Progress, num_before: int) -> str:
    """One question and its answer. num_before: open questions that are answered before this one."""
    stop = (
        f'<button type="button" data-stop-answer="{turn.number}">Stop</button>'
        if turn.is_open
        else ""
    )
    notices = list(turn.notices)
    if turn.state == "done" and turn.seen_seconds is not None:
        length = f" of {clock(progress.duration_seconds)}" if progress.duration_seconds else ""
        notices.append(f"Answered when {clock(turn.seen_seconds)}{length} had been watched.")
    lines = "".join(f'<p class="look-notice">{escape(text)}</p>' for text in notices)
    return (
        f'<article class="look-turn look-{turn.state}" data-number="{turn.number}">'
        f'<p class="look-question">{escape(turn.question)}</p>'
        f'<div class="look-answer"><p>{answer_html(turn, progress, num_before)}</p>{stop}'
        f"{evidence_html(turn)}{lines}</div></article>"
    )


def answer_html(turn: Turn, progress: Progress, num_before: int) -> str:
    """The text of an answer as far as it has come, or what it is waiting for."""
    if turn.state == "done":
        return linked_times(sentence(turn.text), progress.duration_seconds)
    if turn.state == "failed":
        return escape(turn.text)
    if turn.state == "stopped":
        return f"{escape(turn.text)} <em>Stopped.</em>"
    if turn.text:
        return escape(turn.text)
    if num_before:
        questions = "1 question" if num_before == 1 else f"{num_before} questions"
        return f"<em>Waiting for {questions} before this one…</em>"
    return (
        "<em>Looking back…</em>"
        if progress.stats.chunks
        else "<em>Waiting for the first seconds…</em>"
    )


def sentence(text: str) -> str:
    """Short answers as a person would write them: a capital letter, a full stop."""
    text = text.strip()
    text = text[:1].upper() + text[1:]
    return f"{text}." if text[-1:].isalnum() else text


def linked_times(text: str, duration_seconds: float) -> str:
    """The answer, escaped, with every time of the video as m:ss that moves the player."""

    def clock_of(match: re.Match[str]) -> str:
        return f"{match[1]} {clock(float(match[2]))}"

    def button(match: re.Match[str]) -> str:
        hours, minutes, seconds = int(match[1] or 0), int(match[2]), int(match[3])
        start = 3600 * hours + 60 * minutes + seconds
        if duration_seconds and start > duration_seconds:
            return match[0]
        return (
            f'<button type="button" class="look-time" data-seek="{start}" '
            f'data-until="{start + SHOW_SECONDS:.0f}">{match[0]}</button>'
        )

    return CLOCK.sub(button, escape(SPOKEN_SECONDS.sub(clock_of, text)))


def evidence_html(turn: Turn) -> str:
    """What the answer rests on: the best stretches with pictures, the others in one small line."""
    if not turn.evidence:
        return ""
    strong = strongest(turn.evidence)
    others = [item for item in turn.evidence if item not in strong]
    no_pictures = dict.fromkeys(turn.evidence, None if turn.pictures is None else "")
    pictures = {**no_pictures, **dict(zip(turn.evidence, turn.pictures or (), strict=False))}
    moments = "".join(moment_html(item, pictures[item]) for item in strong)
    shown = f'<div class="look-moments">{moments}</div>' if moments else ""
    if not others:
        return shown
    rest = ", ".join(moment_html(item, "") for item in in_time_order(others))
    return f'{shown}<p class="look-also">{"Also looked at" if strong else "Looked at"} {rest}</p>'


def moment_html(evidence: Evidence, url: str | None) -> str:
    """One stretch as a button that plays it. url: of its picture, "" for none, None if to come."""
    picture = "" if url == "" else '<i class="look-to-come"></i>'
    if url:
        picture = f'<img src="{escape(url)}" alt="">'
    return (
        f'<button type="button" class="look-time" data-seek="{evidence.start_seconds:.3f}" '
        f'data-until="{evidence.stop_seconds:.3f}" title="{escape(reason(evidence))}">{picture}'
        f"<span>{span(evidence)}</span></button>"
    )


def reason(evidence: Evidence) -> str:
    """Why a stretch was looked at, in a phrase."""
    if evidence.why == "named time":
        why = "The time that you named"
    elif evidence.why == "recent":
        why = "The newest seconds, which are always looked at"
    else:
        side = "above" if evidence.score >= 0 else "below"
        why = f"Recalled: {abs(evidence.score):.1f} standard deviations {side} the usual match"
    return why if evidence.level == "dense" else f"{why}; a quarter of the detail"


def strongest(evidence: Sequence[Evidence]) -> list[Evidence]:
    """The few stretches that the answer most likely rests on, best first; shown with pictures."""
    best = max((item.score for item in evidence), default=0.0)
    needed = max(WEAK_SCORE, BEST_SHARE * best)
    strong = [item for item in evidence if item.why == "named time" or item.score > needed]
    return strong[:MAX_PICTURES]


def evidence_row(evidence: Evidence) -> tuple[str, str, str]:
    """(span, why, score) for a table; a stretch that was not searched for has no score to show."""
    why = evidence.why if evidence.level == "dense" else f"{evidence.why}, sparse"
    return span(evidence), why, f"{evidence.score:.2f}" if evidence.why == "recalled" else ""


def in_time_order(evidence: Iterable[Evidence]) -> list[Evidence]:
    return sorted(evidence, key=lambda item: item.start_seconds)


def thinned(strip: tuple[StripPicture, ...], limit: int) -> StripPicture | None:
    """The keyframe to give up so that `strip` stays evenly spread, or None while it fits `limit`.

    It is the inner one whose neighbours are closest together, so the first and the newest stay.
    """
    if limit < 2:
        raise ValueError(
            f"a strip needs room for its first and its newest picture, not for {limit}"
        )
    if len(strip) <= limit:
        return None
    times = [item.pts_seconds for item in strip]
    return strip[min(range(1, len(strip) - 1), key=lambda i: times[i + 1] - times[i - 1])]
