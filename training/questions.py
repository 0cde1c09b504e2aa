"""Questions about what a list of moments shows, with the one right answer, in the words of people.

Every family draws its facts from the truth of the world; a question is asked only where its answer
is the only one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from models.demo.tokenizer import OTHER_ANSWER
from models.demo.world import COLOURS, SHAPES, Thing, WorldEvent
from training.phrases import HELD_OUT, OTHER, PATTERNS, compose
from training.scenes import GROUP_SECONDS, Moment, is_digit

T = TypeVar("T")

NOTHING = "nothing"
MOTION_WORDS = ("it stays still", "standing still", "moving")
NOT_SHOWN = "it was not shown"
THEN = ". Then "  # between the sentences of a caption
SAY_LITTLE = (
    "the",
    "a",
    "is",
    "was",
    "there",
    "do",
    "did",
    "does",
    "can",
    "you",
    "i",
    "we",
    "me",
    "it",
    "shown",
    "please",
)
CAPTION_EVENTS, CAPTION_THINGS = 8, 12  # that a caption tells, at most
MORE = " and more"
UNSEEN = {
    "when": 0.2,
    "colour": 0.12,
    "direction": 0.12,
    "after": 0.06,
    "before": 0.06,
}  # share about what was not shown
NEXT_SECONDS = 10.0  # "right after" reaches no further than this

# How often each family is asked while training: binding to times, order and counting are slow, so
# they get more.
FAMILIES: dict[str, float] = {
    "colour": 0.6,
    "shape": 0.5,
    "when": 2.0,
    "what_at": 2.0,
    "count_at": 1.3,
    "count_with": 1.4,
    "direction": 0.8,
    "after": 2.6,
    "before": 2.6,
    "first_of": 1.8,
    "last_of": 2.0,
    "first": 0.4,
    "last": 0.4,
    "now": 0.8,
    "digit": 0.4,
    "digit_at": 0.5,
    "presence": 2.0,
    "describe": 1.2,
    "caption": 1.6,
    "other": 0.8,
}
# The families a reader of the model card thinks in.
GROUPS: dict[str, str] = {
    "count_at": "counting",
    "count_with": "counting",
    "after": "order",
    "before": "order",
    "first_of": "order",
    "last_of": "order",
    "first": "order",
    "last": "order",
    "digit": "digit",
    "digit_at": "digit",
}


@dataclass(frozen=True)
class Question:
    """`events` are the true ones, which evidence should cover; empty where none is meant."""

    family: str
    text: str
    answer: str
    events: tuple[WorldEvent, ...] = ()
    second: int | None = None  # the moment asked about, where one is named

    @property
    def group(self) -> str:
        return GROUPS.get(self.family, self.family)


class Facts:
    """What a list of moments shows, by name, by event and by moment."""

    def __init__(self, moments: Sequence[Moment]) -> None:
        self.moments = moments
        self.first: dict[WorldEvent, Moment] = {}
        self.last: dict[WorldEvent, Moment] = {}
        self.steady: set[WorldEvent] = set()
        for moment in moments:
            for event in moment.events:
                self.first.setdefault(event, moment)
                self.last[event] = moment
                if moment.clean:
                    self.steady.add(event)
        self.events = list(self.first)
        self.by_name: dict[str, list[WorldEvent]] = {}
        self.by_shape: dict[str, set[str]] = {}
        self.by_colour: dict[str, set[str]] = {}
        for event in self.events:
            for thing in event.things:
                self.by_name.setdefault(thing.name, []).append(event)
                self.by_colour.setdefault(thing.colour, set()).add(thing.shape)
                if thing.digit is None:
                    self.by_shape.setdefault(thing.shape, set()).add(thing.colour)
        self.once = {name: events[0] for name, events in self.by_name.items() if len(events) == 1}
        self.clean = [m for m in moments if m.clean and len(m.events) <= 1]
        self._times = [m.pts_seconds for m in moments]

    def unbroken(self, early: Moment, late: Moment) -> bool:
        """Whether no moment between these two is missing, so that what lies between them is
        known.
        """
        known = bisect_left(self._times, late.pts_seconds) - bisect_left(
            self._times, early.pts_seconds
        )
        return known == round((late.pts_seconds - early.pts_seconds) / GROUP_SECONDS)


def phrase(thing: Thing) -> str:
    """A thing with its article."""
    if thing.digit is not None:
        return f"the digit {thing.digit}"
    return f"{'an' if thing.colour == 'orange' else 'a'} {thing.colour} {thing.shape}"


def listing(event: WorldEvent, motion: bool = False) -> str:
    """All things of an event in the fixed order of their shapes."""
    things = sorted(event.things, key=lambda t: SHAPES.index(t.shape) if t.digit is None else -1)
    words = [phrase(t) + (moving(t) if motion and t.digit is None else "") for t in things]
    return " and ".join(words)


def moving(thing: Thing) -> str:
    return " standing still" if thing.motion == "still" else f" moving {thing.motion}"


def story(events: Sequence[WorldEvent]) -> tuple[list[WorldEvent], bool]:
    """The events that a caption tells, in order and none that looks like an earlier one; and
    whether there are more.
    """
    told: dict[str, WorldEvent] = {}
    num_things = 0
    for event in events:
        if listing(event) in told:
            continue
        num_things += len(event.things)
        if len(told) == CAPTION_EVENTS or num_things > CAPTION_THINGS:
            return list(told.values()), True
        told[listing(event)] = event
    return list(told.values()), False


def caption(events: Sequence[WorldEvent]) -> str:
    """A sentence for each event of the story."""
    told, more = story(events)
    return (THEN.join(listing(event) for event in told) or NOTHING) + (MORE if more else "")


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def ask(
    rng: np.random.Generator,
    facts: Facts,
    family: str,
    held_out: bool = False,
    strange: float = 0.0,
) -> Question | None:
    """A question of the family, or None where the moments give no unambiguous one.

    held_out: in words that training never uses. strange: share of questions with a word that nobody
    knows.
    """
    unseen = rng.random() < UNSEEN.get(family, 0.0)
    made = _of_unseen(rng, facts, family) if unseen else ASKERS[family](rng, facts)
    if made is None:
        return None
    words, answer, events = made
    second = words.get("second")
    text = phrased(rng, family, words, held_out, strange)
    return Question(
        family, text, answer, tuple(events), second if isinstance(second, int) else None
    )


def phrased(
    rng: np.random.Generator,
    family: str,
    words: Mapping[str, object],
    held_out: bool = False,
    strange: float = 0.0,
) -> str:
    """What a person would say."""
    if held_out:
        text = pick(rng, HELD_OUT[family])
    elif family == "other":
        text = other_text(rng)
    else:
        text = compose(rng, pick(rng, PATTERNS[family]))
        text = disturbed(rng, text) if strange and rng.random() < strange else text
    return text.format(**words).replace("a orange", "an orange")


def disturbed(rng: np.random.Generator, text: str) -> str:
    """With a word that nobody knows, put in or instead of one that says little."""
    words = text.split(" ")
    place = int(rng.integers(len(words)))
    place += words[place].startswith("seconds")  # a number and its unit stay together
    strange = "".join(rng.choice(list("bdfgklmz"), 4))
    if place < len(words) and words[place].lower() in SAY_LITTLE and rng.random() < 0.6:
        words[place] = strange
    else:
        words.insert(place, strange)
    return " ".join(words)


def ask_presence(rng: np.random.Generator, facts: Facts, name: str) -> Question:
    """Whether a thing of this name is there."""
    shown = facts.by_name.get(name, [])
    text = phrased(rng, "presence", {"name": name})
    return Question("presence", text, "yes" if shown else "no", tuple(shown))


def _of_unseen(rng: np.random.Generator, facts: Facts, family: str) -> Made:
    """About a thing that never was there."""
    if family == "colour":
        shapes = [shape for shape in SHAPES if shape not in facts.by_shape]
        return ({"shape": pick(rng, shapes)}, NOT_SHOWN, ()) if shapes else None
    combos = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    absent = [name for name in combos if name not in facts.by_name]
    alike = [name for name in absent if _halves_seen(name, facts)]
    name = pick(rng, alike if alike and rng.random() < 0.5 else absent)
    return {"name": name}, NOT_SHOWN, ()


Made = tuple[dict[str, object], str, Sequence[WorldEvent]] | None
Asker = Callable[[np.random.Generator, Facts], Made]


def _colour(rng: np.random.Generator, facts: Facts) -> Made:
    shapes = [shape for shape, colours in facts.by_shape.items() if len(colours) == 1]
    if not shapes:
        return None
    shape = pick(rng, shapes)
    colour = next(iter(facts.by_shape[shape]))
    return {"shape": shape}, colour, facts.by_name[f"{colour} {shape}"]


def _shape(rng: np.random.Generator, facts: Facts) -> Made:
    colours = [
        colour
        for colour, shapes in facts.by_colour.items()
        if len(shapes) == 1 and "digit" not in shapes
    ]
    if not colours:
        return None
    colour = pick(rng, colours)
    shape = next(iter(facts.by_colour[colour]))
    return {"colour": colour}, shape, facts.by_name[f"{colour} {shape}"]


def _when(rng: np.random.Generator, facts: Facts) -> Made:
    if not facts.once:
        return None
    name = pick(rng, list(facts.once))
    event = facts.once[name]
    return {"name": name}, f"at {facts.first[event].second} seconds", [event]


def _clean_moment(
    rng: np.random.Generator, facts: Facts, fits: Callable[[WorldEvent], bool], empty: float
) -> Moment | None:
    """A moment that shows one fitting event, or (rarely, by the share `empty`) none."""
    bare = [m for m in facts.clean if not m.events]
    if bare and rng.random() < empty:
        return pick(rng, bare)
    full = [m for m in facts.clean if m.events and fits(m.events[0])]
    return pick(rng, full) if full else None


def _what_at(rng: np.random.Generator, facts: Facts) -> Made:
    moment = _clean_moment(rng, facts, lambda e: len(e.things) <= 4, 0.1)
    if moment is None:
        return None
    answer = listing(moment.events[0]) if moment.events else NOTHING
    return {"second": moment.second}, answer, moment.events


def _describe(rng: np.random.Generator, facts: Facts) -> Made:
    moment = _clean_moment(rng, facts, lambda e: len(e.things) <= 4, 0.1)
    if moment is None:
        return None
    answer = listing(moment.events[0], motion=True) if moment.events else NOTHING
    return {"second": moment.second}, answer, moment.events


def _count_at(rng: np.random.Generator, facts: Facts) -> Made:
    moment = _clean_moment(rng, facts, lambda e: not is_digit(e), 0.1)
    if moment is None:
        return None
    return (
        {"second": moment.second},
        str(len(moment.events[0].things) if moment.events else 0),
        moment.events,
    )


def _count_with(rng: np.random.Generator, facts: Facts) -> Made:
    names = [
        name for name, event in facts.once.items() if event in facts.steady and not is_digit(event)
    ]
    if not names:
        return None
    crowded = [name for name in names if len(facts.once[name].things) > 1]
    name = pick(rng, crowded if crowded and rng.random() < 0.6 else names)
    event = facts.once[name]
    return {"name": name}, str(len(event.things)), [event]


def _direction(rng: np.random.Generator, facts: Facts) -> Made:
    names = [
        name for name, event in facts.once.items() if event in facts.steady and not is_digit(event)
    ]
    if not names:
        return None
    name = pick(rng, names)
    event = facts.once[name]
    thing = next(t for t in event.things if t.name == name)
    return {"name": name}, "it stays still" if thing.motion == "still" else thing.motion, [event]


def _neighbour(step: int) -> Asker:
    def asker(rng: np.random.Generator, facts: Facts) -> Made:
        fitting = []
        for name, event in facts.once.items():
            place = facts.events.index(event) + step
            if not 0 <= place < len(facts.events):
                continue
            other = facts.events[place]
            early, late = (event, other) if step > 0 else (other, event)
            end, start = facts.last[early], facts.first[late]
            near = start.pts_seconds - end.pts_seconds < NEXT_SECONDS and facts.unbroken(end, start)
            if near and len(other.things) == 1:
                fitting.append((name, event, other))
        if not fitting:
            return None
        name, event, other = pick(rng, fitting)
        return {"name": name}, listing(other), [event, other]

    return asker


def _either(latest: bool) -> Asker:
    def asker(rng: np.random.Generator, facts: Facts) -> Made:
        if len(facts.once) < 2:
            return None
        name, other = (str(n) for n in rng.choice(list(facts.once), 2, replace=False))
        events = [facts.once[name], facts.once[other]]
        if events[0] is events[1]:
            return None
        order = sorted(
            ((facts.first[e].pts_seconds, n) for e, n in zip(events, (name, other), strict=True)),
            reverse=latest,
        )
        if order[0][0] == order[1][0]:
            return None
        return {"name": name, "other": other}, f"the {order[0][1]}", events

    return asker


def _outermost(place: int) -> Asker:
    def asker(rng: np.random.Generator, facts: Facts) -> Made:
        if not facts.events or len(facts.events[place].things) > 1:
            return None
        return {}, listing(facts.events[place]), [facts.events[place]]

    return asker


def _digit(rng: np.random.Generator, facts: Facts) -> Made:
    names = [name for name in facts.by_name if name.startswith("digit")]
    if len(names) != 1:
        return None
    return {}, names[0].removeprefix("digit "), facts.by_name[names[0]]


def _digit_at(rng: np.random.Generator, facts: Facts) -> Made:
    moment = _clean_moment(rng, facts, is_digit, 0.0)
    if moment is None:
        return None
    return {"second": moment.second}, str(moment.events[0].things[0].digit), moment.events


def _presence(rng: np.random.Generator, facts: Facts) -> Made:
    combos = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    kind = rng.random()
    if kind < 0.15:
        name = str(rng.choice(SHAPES))
        shown = [e for e in facts.events if any(t.shape == name for t in e.things)]
    elif kind < 0.25:
        name = f"digit {rng.integers(10)}"
        shown = facts.by_name.get(name, [])
    elif kind < 0.6 and facts.by_name:
        name = pick(rng, list(facts.by_name))
        shown = facts.by_name[name]
    else:
        lookalike = [c for c in combos if c not in facts.by_name and _halves_seen(c, facts)]
        absent = [c for c in combos if c not in facts.by_name]
        if not absent:
            return None
        name, shown = pick(rng, lookalike if lookalike and rng.random() < 0.7 else absent), []
    return {"name": name}, "yes" if shown else "no", shown


def _halves_seen(name: str, facts: Facts) -> bool:
    colour, shape = name.split()
    return shape in facts.by_shape and colour in facts.by_colour


def _caption(rng: np.random.Generator, facts: Facts) -> Made:
    return {}, caption(facts.events), story(facts.events)[0]


def _now(rng: np.random.Generator, facts: Facts) -> Made:
    if not facts.moments:
        return None
    latest = facts.moments[-1]
    if not latest.clean or len(latest.events) > 1:
        return None
    return {}, listing(latest.events[0]) if latest.events else NOTHING, latest.events


def other_text(rng: np.random.Generator) -> str:
    """A question of another world: about everyday things, or a familiar one with a strange word in
    it.
    """
    if rng.random() < 0.75:
        return compose(rng, pick(rng, OTHER))
    named = [
        family
        for family, group in PATTERNS.items()
        if any("{name}" in p or "{shape}" in p for p in group)
    ]
    strange = dict.fromkeys(("name", "shape", "colour", "other"), "zebra")
    text = compose(rng, pick(rng, PATTERNS[pick(rng, named)]))
    return text.format(second=int(rng.integers(4000)), **strange)


def _other(rng: np.random.Generator, facts: Facts) -> Made:
    return {}, OTHER_ANSWER, ()


ASKERS: dict[str, Asker] = {
    "colour": _colour,
    "shape": _shape,
    "when": _when,
    "what_at": _what_at,
    "count_at": _count_at,
    "count_with": _count_with,
    "direction": _direction,
    "after": _neighbour(1),
    "before": _neighbour(-1),
    "first_of": _either(latest=False),
    "last_of": _either(latest=True),
    "first": _outermost(0),
    "last": _outermost(-1),
    "digit": _digit,
    "digit_at": _digit_at,
    "presence": _presence,
    "describe": _describe,
    "caption": _caption,
    "now": _now,
    "other": _other,
}
