"""Questions about what a list of moments shows, with the one right answer, in the words of people.

Every family draws its facts from the truth of the world; a question is asked only where its answer is the only one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from models.demo.tokenizer import OTHER_ANSWER
from models.demo.world import COLOURS, SHAPES, Thing, WorldEvent
from training.scenes import GROUP_SECONDS, Moment, is_digit

T = TypeVar("T")

NOTHING = "nothing"
MOTION_WORDS = ("it stays still", "standing still", "moving")
CAPTION_EVENTS = 3
MORE = " and more"
NEXT_SECONDS = 10.0  # "right after" reaches no further than this

PHRASES: dict[str, tuple[str, ...]] = {
    "colour": (
        "What colour is the {shape}?",
        "What color is the {shape}?",
        "Which colour does the {shape} have?",
        "Tell me the color of the {shape}.",
        "The {shape}, what colour was it?",
        "What is the colour of the {shape}?",
        "What colour was the {shape}?",
        "which color has the {shape}",
    ),
    "shape": (
        "What shape is {colour}?",
        "Which shape is {colour}?",
        "What is the {colour} thing?",
        "What is the shape of the {colour} object?",
        "The {colour} object, what shape is it?",
        "Tell me which shape was {colour}.",
        "What shape is the {colour} one?",
    ),
    "when": (
        "When does the {name} appear?",
        "When is the {name} shown?",
        "When was the {name} there?",
        "At what time does the {name} appear?",
        "At which second is the {name} first shown?",
        "When did you see the {name}?",
        "when can i see the {name}",
        "When did the {name} show up?",
    ),
    "what_at": (
        "What is shown at {second} seconds?",
        "What is there at {second} seconds?",
        "What can you see at {second} seconds?",
        "What was shown at {second} seconds?",
        "At {second} seconds, what is on screen?",
        "what do you see at {second} seconds",
        "Which thing is there at {second} seconds?",
    ),
    "count_at": (
        "How many shapes are there at {second} seconds?",
        "How many objects are shown at {second} seconds?",
        "At {second} seconds, how many things are there?",
        "Count the shapes at {second} seconds.",
    ),
    "count_with": (
        "How many shapes are there when the {name} is shown?",
        "How many objects are shown together with the {name}, itself included?",
        "Count the shapes in the moment of the {name}.",
        "How many things can you see when the {name} appears?",
    ),
    "direction": (
        "Which way does the {name} move?",
        "In which direction does the {name} move?",
        "Where does the {name} go?",
        "How does the {name} move?",
        "In what direction is the {name} moving?",
        "which direction did the {name} move",
    ),
    "after": (
        "What comes right after the {name}?",
        "What is shown after the {name}?",
        "What follows the {name}?",
        "What appears next after the {name}?",
    ),
    "before": (
        "What comes right before the {name}?",
        "What is shown before the {name}?",
        "What was there just before the {name}?",
    ),
    "first_of": (
        "Which came first, the {name} or the {other}?",
        "What was shown first, the {name} or the {other}?",
        "Which appears earlier, the {name} or the {other}?",
    ),
    "last_of": (
        "Which came last, the {name} or the {other}?",
        "What was shown later, the {name} or the {other}?",
    ),
    "first": (
        "What is the first thing shown?",
        "What is shown first?",
        "What came first?",
        "What appears at the beginning?",
    ),
    "last": ("What is the last thing shown?", "What is shown last?", "What came last?", "What appears at the end?"),
    "digit": (
        "Which digit is shown?",
        "What digit can you see?",
        "Which number is shown?",
        "What number was it?",
        "Tell me the digit.",
    ),
    "digit_at": (
        "Which digit is shown at {second} seconds?",
        "What number is there at {second} seconds?",
        "What digit is on screen at {second} seconds?",
    ),
    "presence": (
        "Is there a {name}?",
        "Was there a {name}?",
        "Did a {name} appear?",
        "Is a {name} shown?",
        "Can you see a {name}?",
        "Did you see a {name}?",
        "Does a {name} appear in the video?",
        "Have you ever seen a {name}?",
    ),
    "describe": (
        "Describe the moment at {second} seconds.",
        "What happens at {second} seconds?",
        "Describe what you see at {second} seconds.",
        "What is going on at {second} seconds?",
    ),
    "caption": (
        "Describe the clip.",
        "Describe the video.",
        "What happens in this video?",
        "Caption this clip.",
        "Give me a caption.",
        "Summarize the video.",
        "What is this video about?",
    ),
    "other": (
        "Who is the man in the car?",
        "What is the weather like?",
        "How are you?",
        "Hello!",
        "What is your name?",
        "What is the person wearing?",
        "Which animal is eating the flowers?",
        "Tell me a joke.",
        "What is the capital of France?",
        "Why does she leave the house?",
        "What does the sign say?",
        "Is the dog happy?",
        "What kind of music is playing?",
        "Who wins the game?",
        "Can you help me with my homework?",
        "What language are they speaking?",
        "Where was this filmed?",
        "What colour is the car?",
        "How many people are there?",
        "What brand is the phone?",
        "Translate this into German.",
        "Is there a cat?",
        "When does the train arrive?",
        "Which way does the bird fly?",
        "What is two plus two?",
        "Who are you?",
        "What can you do?",
        "Do you like it?",
    ),
}
# How often each family is asked while training: binding to times, order and counting are slow, so they get more.
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
    "digit": 0.3,
    "digit_at": 0.5,
    "presence": 1.5,
    "describe": 1.2,
    "caption": 1.0,
    "other": 0.4,
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
        """Whether no moment between these two is missing, so that what lies between them is known."""
        known = bisect_left(self._times, late.pts_seconds) - bisect_left(self._times, early.pts_seconds)
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


def caption(events: Sequence[WorldEvent]) -> str:
    """The first events in order, and whether there are more."""
    told = " then ".join(listing(event) for event in events[:CAPTION_EVENTS]) or NOTHING
    return told + (MORE if len(events) > CAPTION_EVENTS else "")


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def ask(rng: np.random.Generator, facts: Facts, family: str) -> Question | None:
    """A question of the family, or None where the moments give no unambiguous one."""
    made = ASKERS[family](rng, facts)
    if made is None:
        return None
    words, answer, events = made
    text = other_text(rng) if family == "other" else pick(rng, PHRASES[family]).format(**words)
    second = words.get("second")
    return Question(
        family,
        text.replace("a orange", "an orange"),
        answer,
        tuple(events),
        second if isinstance(second, int) else None,
    )


def ask_presence(rng: np.random.Generator, facts: Facts, name: str) -> Question:
    """Whether a thing of this name is there."""
    shown = facts.by_name.get(name, [])
    text = pick(rng, PHRASES["presence"]).format(name=name).replace("a orange", "an orange")
    return Question("presence", text, "yes" if shown else "no", tuple(shown))


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
    colours = [colour for colour, shapes in facts.by_colour.items() if len(shapes) == 1 and "digit" not in shapes]
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
    moment = _clean_moment(rng, facts, lambda e: len(e.things) <= 2, 0.1)
    if moment is None:
        return None
    answer = listing(moment.events[0]) if moment.events else NOTHING
    return {"second": moment.second}, answer, moment.events


def _describe(rng: np.random.Generator, facts: Facts) -> Made:
    moment = _clean_moment(rng, facts, lambda e: len(e.things) <= 2, 0.1)
    if moment is None:
        return None
    answer = listing(moment.events[0], motion=True) if moment.events else NOTHING
    return {"second": moment.second}, answer, moment.events


def _count_at(rng: np.random.Generator, facts: Facts) -> Made:
    moment = _clean_moment(rng, facts, lambda e: not is_digit(e), 0.1)
    if moment is None:
        return None
    return {"second": moment.second}, str(len(moment.events[0].things) if moment.events else 0), moment.events


def _count_with(rng: np.random.Generator, facts: Facts) -> Made:
    names = [name for name, event in facts.once.items() if event in facts.steady and not is_digit(event)]
    if not names:
        return None
    crowded = [name for name in names if len(facts.once[name].things) > 1]
    name = pick(rng, crowded if crowded and rng.random() < 0.6 else names)
    event = facts.once[name]
    return {"name": name}, str(len(event.things)), [event]


def _direction(rng: np.random.Generator, facts: Facts) -> Made:
    names = [name for name, event in facts.once.items() if event in facts.steady and not is_digit(event)]
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
            ((facts.first[e].pts_seconds, n) for e, n in zip(events, (name, other), strict=True)), reverse=latest
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
    told = facts.events[:CAPTION_EVENTS]
    if any(len(event.things) > 2 for event in told):
        return None
    return {}, caption(facts.events), told


def other_text(rng: np.random.Generator) -> str:
    """A question of another world: about everyday things, or a familiar one with a strange word in it."""
    if rng.random() < 0.5:
        return pick(rng, PHRASES["other"])
    family = pick(rng, [f for f, group in PHRASES.items() if any("{name}" in p or "{shape}" in p for p in group)])
    strange = dict.fromkeys(("name", "shape", "colour", "other"), "zebra")
    return pick(rng, PHRASES[family]).format(second=int(rng.integers(4000)), **strange)


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
    "other": _other,
}
