"""What the recall bench must show of ours, beside what it measured. Knows nothing of how that was
done.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median

from bench.report import LAST_FRAMES, OURS, SHORT_CLIP, WINDOW, Result, Target

CONTEXT_TOKENS = 4096
# what the longest stream is compared with, or the shortest one at least so long
SHORT_MINUTES = 10.0


def targets(results: Sequence[Result]) -> list[Target]:
    """Of the longest stream, beside a short one where growth is the question."""
    lengths = sorted({r.minutes for r in results})
    longest, short = lengths[-1], next((m for m in lengths if m >= SHORT_MINUTES), lengths[0])
    at_end = [r for r in results if r.minutes == longest]
    ours, before = of(at_end, OURS), of([r for r in results if r.minutes == short], OURS)
    return [
        _beside(
            "past, right",
            of(at_end, OURS, "past"),
            SHORT_CLIP,
            of(at_end, SHORT_CLIP, "past"),
            0.95,
        ),
        _beside(
            "present, right",
            of(at_end, OURS, "present"),
            LAST_FRAMES,
            of(at_end, LAST_FRAMES, "present"),
        ),
        _beside(
            "present, right", of(at_end, OURS, "present"), WINDOW, of(at_end, WINDOW, "present")
        ),
        _beside(
            'never happened, "no"',
            of(at_end, OURS, "never"),
            SHORT_CLIP,
            of(at_end, SHORT_CLIP, "never"),
        ),
        _most_tokens(of(results, OURS)),
        _growth(
            "device bytes",
            [r.device_bytes for r in ours],
            [r.device_bytes for r in before],
            short,
            1.05,
        ),
        _growth(
            "first token, median ms",
            [median(1000 * r.first_token_seconds for r in ours)] if ours else [],
            [median(1000 * r.first_token_seconds for r in before)] if before else [],
            short,
            2.0,
        ),
    ]


def of(results: Sequence[Result], arm: str, kind: str | None = None) -> list[Result]:
    return [r for r in results if r.arm == arm and kind in (None, r.kind)]


def _beside(
    what: str, ours: Sequence[Result], arm: str, other: Sequence[Result], least: float = 1.0
) -> Target:
    """The share of right answers, at least `least` times that of another way with the same
    questions.
    """
    wanted = f"at least {f'{least:g} x ' if least != 1 else ''}{arm}"
    if not ours or not other:
        return Target(what, wanted, "not asked", None)
    mine, theirs = mean(r.right for r in ours), mean(r.right for r in other)
    ratio = f", ratio {mine / theirs:.3f}" if theirs else ""
    return Target(
        what, wanted, f"{_count(ours)} beside {_count(other)}{ratio}", mine >= least * theirs
    )


def _most_tokens(ours: Sequence[Result]) -> Target:
    most = max((r.context_tokens for r in ours), default=None)
    is_met = None if most is None else most <= CONTEXT_TOKENS
    return Target("context tokens, any length", f"at most {CONTEXT_TOKENS}", f"{most}", is_met)


def _growth(
    what: str, ours: Sequence[float], before: Sequence[float], short: float, most: float
) -> Target:
    wanted = f"at most {most:g} x those at {short:g} min"
    if not ours or not before:
        return Target(what, wanted, "not asked", None)
    now, then = max(ours), max(before)
    return Target(
        what, wanted, f"{now:,.0f} beside {then:,.0f}, ratio {now / then:.3f}", now <= most * then
    )


def _count(results: Sequence[Result]) -> str:
    return f"{sum(r.right for r in results)}/{len(results)}"
