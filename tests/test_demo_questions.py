"""Questions have one right answer, found here a second time from the timeline, and all fit the tokenizer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from models.demo.tokenizer import SPECIAL, UNKNOWN, build_tokenizer, vocabulary
from models.demo.world import COLOURS, MOTIONS, SHAPES, Scene, Thing, WorldEvent
from models.sampling import TextStream
from training.bind import ClipMaker, Stage
from training.questions import (
    FAMILIES,
    OTHER_ANSWER,
    PHRASES,
    Facts,
    Question,
    ask,
    caption,
    listing,
)
from training.scenes import Moment, group_times, random_scene
from training.streams import make_stream, stream_questions

TOKENIZER = build_tokenizer()
ARTICLE = {colour: "an" if colour == "orange" else "a" for colour in COLOURS}
NAME = re.compile(rf"(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})|digit \d")


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text).input_ids)


# --- the truth a second time: what stands in each frame, and nothing else ---------------------------------------------


@dataclass(frozen=True)
class Shown:
    """What one frame shows: its group's second, and the things (None for no event) with a number for their event."""

    second: int
    event: int | None
    things: tuple[Thing, ...]
    steady: bool  # the group's other frame shows the same


def timeline(clip: Sequence[tuple[Scene, float]]) -> list[Shown]:
    """Every frame of scenes that start at given times, straight from their events."""
    frames, number = [], 0
    for scene, start in clip:
        known: dict[int, int] = {}
        for pair in group_times(scene):
            events = [scene.event_at(t) for t in pair]
            for event in events:
                if event is not None and id(event) not in known:
                    known[id(event)] = number = number + 1
            second = int(float(f"{start + sum(pair) / 2:.1f}"))
            for event in events:
                told = known[id(event)] if event else None
                frames.append(Shown(second, told, event.things if event else (), events[0] is events[1]))
    return frames


def told(things: Sequence[Thing], motion: bool = False) -> str:
    words = []
    for thing in sorted(things, key=lambda t: [*SHAPES, "digit"].index(t.shape)):
        if thing.digit is not None:
            words.append(f"the digit {thing.digit}")
            continue
        move = {"still": "standing still"}.get(thing.motion, f"moving {thing.motion}")
        words.append(f"{ARTICLE[thing.colour]} {thing.colour} {thing.shape}" + (f" {move}" if motion else ""))
    return " and ".join(words) or "nothing"


class Check:
    """All answers that the frames allow, as a set: one where the question is unambiguous."""

    def __init__(self, frames: Sequence[Shown]) -> None:
        self.frames = frames
        self.order = list(dict.fromkeys(f.event for f in frames if f.event))
        self.things = {f.event: f.things for f in frames if f.event}

    def answers(self, question: Question) -> set[str]:
        text = question.text
        names = NAME.findall(text)
        seconds = [int(n) for n in re.findall(r"(\d+) seconds", text)]
        rule: Callable[..., set[str]] = getattr(self, question.family)
        return rule(text, names, seconds)

    def events_with(self, name: str) -> list[int]:
        return [e for e in self.order if any(t.name == name for t in self.things[e])]

    def at(self, second: int) -> set[tuple[Thing, ...]]:
        return {f.things for f in self.frames if f.second == second}

    def all_things(self) -> set[Thing]:
        return {t for things in self.things.values() for t in things}

    def colour(self, text: str, names: list[str], seconds: list[int]) -> set[str]:
        shape = next(s for s in SHAPES if re.search(rf"\b{s}\b", text))
        return {t.colour for t in self.all_things() if t.shape == shape}

    def shape(self, text: str, names: list[str], seconds: list[int]) -> set[str]:
        colour = next(c for c in COLOURS if re.search(rf"\b{c}\b", text))
        return {t.shape for t in self.all_things() if t.colour == colour}

    def when(self, text: str, names: list[str], seconds: list[int]) -> set[str]:
        starts = [min(f.second for f in self.frames if f.event == e) for e in self.events_with(names[0])]
        return {f"at {s} seconds" for s in starts} if len(starts) == 1 else set()

    def what_at(self, text: str, names: list[str], seconds: list[int]) -> set[str]:
        return {told(things) for things in self.at(seconds[0])}

    def describe(self, text: str, names: list[str], seconds: list[int]) -> set[str]:
        return {told(things, motion=True) for things in self.at(seconds[0])}

    def count_at(self, text: str, names: list[str], seconds: list[int]) -> set[str]:
        return {str(len(things)) for things in self.at(seconds[0])}

    def count_with(self, text: str, names: list[str], seconds: list[int]) -> set[str]:
        events = self.events_with(names[0])
        return {str(len(self.things[e])) for e in events} if len(events) == 1 else set()

    def direction(self, text: str, names: list[str], seconds: list[int]) -> set[str]:
        moves = {t.motion for e in self.events_with(names[0]) for t in self.things[e] if t.name == names[0]}
        steady = any(f.steady and f.event in self.events_with(names[0]) for f in self.frames)
        return {"it stays still" if m == "still" else m for m in moves} if steady else set()

    def after(self, text: str, names: list[str], seconds: list[int], step: int = 1) -> set[str]:
        (event,) = self.events_with(names[0])
        return {told(self.things[self.order[self.order.index(event) + step]])}

    def before(self, text: str, names: list[str], seconds: list[int]) -> set[str]:
        return self.after(text, names, seconds, -1)

    def first_of(self, text: str, names: list[str], seconds: list[int], last: bool = False) -> set[str]:
        (one,), (other,) = (self.events_with(name) for name in names)
        assert one != other
        return {f"the {names[(one < other) == last]}"}

    def last_of(self, text: str, names: list[str], seconds: list[int]) -> set[str]:
        return self.first_of(text, names, seconds, last=True)

    def first(self, text: str, names: list[str], seconds: list[int]) -> set[str]:
        return {told(self.things[self.order[0]])}

    def last(self, text: str, names: list[str], seconds: list[int]) -> set[str]:
        return {told(self.things[self.order[-1]])}

    def digit(self, text: str, names: list[str], seconds: list[int]) -> set[str]:
        return {str(t.digit) for t in self.all_things() if t.digit is not None}

    def digit_at(self, text: str, names: list[str], seconds: list[int]) -> set[str]:
        return {str(t.digit) for things in self.at(seconds[0]) for t in things}

    def presence(self, text: str, names: list[str], seconds: list[int]) -> set[str]:
        shape = next((s for s in SHAPES if re.search(rf"\b{s}\b", text)), "")
        found = self.events_with(names[0]) if names else [t for t in self.all_things() if t.shape == shape]
        return {"yes" if found else "no"}

    def caption(self, text: str, names: list[str], seconds: list[int]) -> set[str]:
        begun = " then ".join(told(self.things[e]) for e in self.order[:3]) or "nothing"
        return {begun + (" and more" if len(self.order) > 3 else "")}

    def other(self, text: str, names: list[str], seconds: list[int]) -> set[str]:
        return {OTHER_ANSWER}


def random_clip(seed: int) -> tuple[list[tuple[Scene, float]], Facts]:
    """Scenes at random times, and the facts from which questions are made."""
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, int(rng.integers(1, 4))) for _ in range(30)]
    first = np.cumsum([0, *(len(group_times(scene)) for scene in scenes)]).tolist()
    stage = Stage("clip", groups=(4, 4), chunks=(1 + seed % 4, 2 + seed % 4), far=0.5)
    chunks = ClipMaker(scenes, first, TOKENIZER).chunks(rng, stage)
    truth = [moment for chunk in chunks for moment in chunk.truth]
    clip, at = [], 0
    groups = [group for chunk in chunks for group in chunk.groups]
    while at < len(groups):
        number = int(np.searchsorted(first, groups[at], side="right")) - 1
        stop = at
        while stop < len(groups) and groups[stop] == groups[at] + stop - at and groups[stop] < first[number + 1]:
            stop += 1
        skipped, scene = groups[at] - first[number], scenes[number]
        start = truth[at].pts_seconds - sum(group_times(scene)[skipped]) / 2
        clip.append((Scene((skipped + stop - at) * 1.0, scene.background_seed, scene.events), start))
        assert skipped == 0
        at = stop
    if len(set(groups)) < len(groups):  # one scene twice in a clip is one event to its makers: leave it out here
        return random_clip(seed + 1000)
    return clip, Facts(truth)


def test_every_family_asks_what_has_one_answer_and_gives_it() -> None:
    asked: Counter[str] = Counter()
    for seed in range(60):
        clip, facts = random_clip(seed)
        check = Check(timeline(clip))
        rng = np.random.default_rng([seed, 1])
        for family in FAMILIES:
            question = ask(rng, facts, family)
            if question is None:
                continue
            asked[family] += 1
            assert check.answers(question) == {question.answer}, (seed, question)
    assert min(asked[family] for family in FAMILIES) >= 10, asked


def test_a_wrong_answer_would_be_noticed() -> None:
    clip, facts = random_clip(8)
    check, rng = Check(timeline(clip)), np.random.default_rng(0)
    question = ask(rng, facts, "when")
    assert question is not None
    later = [(scene, start + 1) for scene, start in clip]
    assert check.answers(question) == {question.answer} != Check(timeline(later)).answers(question)


# --- what is not asked ------------------------------------------------------------------------------------------------


def thing(name: str, motion: str = "still") -> Thing:
    kind, what = name.split()
    if kind == "digit":
        return Thing("digit", "white", 0.7, 0.5, 0.5, "still", int(what))
    return Thing(what, kind, 0.3, 0.5, 0.5, motion)


def facts_of(*groups: str) -> Facts:
    """One group a second; "a red circle+a blue star" share a group, "" is an empty one, "=" goes on with the last."""
    truth: list[Moment] = []
    for second, names in enumerate(groups):
        events: tuple[WorldEvent, ...] = ()
        if names == "=":
            events = truth[-1].events
        elif names:
            events = (WorldEvent(second, second + 1, tuple(thing(name) for name in names.split("+"))),)
        truth.append(Moment(second + 0.25, events, True))
    return Facts(truth)


def texts(facts: Facts, family: str) -> set[tuple[str, str]]:
    """All (text, answer) of many draws; the text without its phrasing's words."""
    rng = np.random.default_rng(0)
    made = [ask(rng, facts, family) for _ in range(80)]
    return {(" ".join(NAME.findall(q.text)), q.answer) for q in made if q}


def test_what_has_two_answers_is_not_asked() -> None:
    two_colours = facts_of("red circle", "", "blue circle")
    assert not texts(two_colours, "colour")
    assert {answer for _, answer in texts(facts_of("red circle", "", "red circle"), "colour")} == {"red"}
    assert not texts(facts_of("red circle", "red star"), "shape")
    assert not texts(facts_of("red circle", "", "red circle"), "when")
    assert texts(facts_of("red circle", "=", ""), "when") == {("red circle", "at 0 seconds")}
    assert not texts(facts_of("digit 3", "digit 5"), "digit")
    assert texts(facts_of("digit 3", "", "digit 3"), "digit") == {("", "3")}
    assert not texts(facts_of("red circle+blue star", "red ring"), "first")
    assert texts(facts_of("red circle+blue star", "red ring"), "last") == {("", "a red ring")}
    assert not texts(facts_of("red circle+blue star"), "first_of")
    assert not texts(facts_of(), "first") and not texts(facts_of("", ""), "when")


def test_neighbours_are_asked_only_where_they_are_near_and_alone() -> None:
    near, far = facts_of("red circle", "", "blue star"), facts_of("red circle", *[""] * 12, "blue star")
    assert texts(near, "after") == {("red circle", "a blue star")}
    assert texts(near, "before") == {("blue star", "a red circle")}
    assert not texts(far, "after") and not texts(far, "before")
    assert not texts(facts_of("red circle", "blue star+red ring"), "after")


def test_neighbours_are_not_asked_across_a_moment_that_is_missing() -> None:
    known = facts_of("red circle", "", "blue star", "green ring").moments
    assert texts(Facts([known[0], *known[2:]]), "after") == {("blue star", "a green ring")}
    assert texts(Facts(known), "after") == {("red circle", "a blue star"), ("blue star", "a green ring")}


def test_moments_that_change_within_a_group_are_not_asked_about() -> None:
    one, other = (WorldEvent(0, 2, (thing(name),)) for name in ("red circle", "blue star"))
    facts = Facts([Moment(0.25, (one, other), False)])
    for family in ("what_at", "describe", "count_at", "digit_at", "count_with", "direction"):
        assert not texts(facts, family)
    assert texts(facts, "first_of") == set()


def test_presence_is_asked_of_what_was_there_and_of_what_was_nearly_there() -> None:
    asked = texts(facts_of("red circle", "blue star"), "presence")
    assert {("red circle", "yes"), ("blue star", "yes"), ("blue circle", "no"), ("red star", "no")} <= asked
    assert not {("red circle", "no"), ("blue star", "no"), ("blue circle", "yes"), ("red star", "yes")} & asked


def test_things_are_listed_in_one_order_however_they_were_drawn() -> None:
    names = ("orange heart", "red circle", "cyan star")
    drawn = [WorldEvent(0, 1, tuple(thing(n) for n in order)) for order in (names, names[::-1])]
    assert listing(drawn[0]) == listing(drawn[1]) == "a red circle and a cyan star and an orange heart"
    assert listing(WorldEvent(0, 1, (thing("red ring", "up"),)), motion=True) == "a red ring moving up"
    assert caption([]) == "nothing" and caption(drawn * 2).endswith(" and more")


def test_a_streams_questions_are_the_same_each_time_and_none_is_there_twice() -> None:
    stream = make_stream(5, 120)
    questions = stream_questions(stream, 1, 4, list(FAMILIES))
    assert questions == stream_questions(make_stream(5, 120), 1, 4, list(FAMILIES))
    assert questions != stream_questions(stream, 2, 4, list(FAMILIES))
    counts = Counter(question.family for question in questions)
    assert max(counts.values()) <= 4 and len(counts) >= 17
    assert len({(q.family, q.text, q.answer) for q in questions}) == len(questions)
    check = Check(timeline(list(zip(stream.scenes, stream.starts, strict=True))))
    assert all(check.answers(question) == {question.answer} for question in questions)


# --- the tokenizer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [family for family in PHRASES if family != "other"])
def test_a_phrasing_reads_the_same_in_any_case_and_with_any_punctuation(family: str) -> None:
    for phrase in PHRASES[family]:
        text = phrase.format(name="red circle", other="blue star", shape="ring", colour="cyan", second=45321)
        plain = ids(text)
        assert UNKNOWN not in TOKENIZER.convert_ids_to_tokens(plain), text
        bare = re.sub(r"[^\w\s]", "", text)
        for same in (text.upper(), text.lower(), bare, f"  {bare} ?!... ", text.replace(" ", "   ")):
            assert ids(same) == plain, same
        other = phrase.format(name="red ring", other="white star", shape="heart", colour="blue", second=45322)
        assert (ids(other) != plain) == ("{" in phrase)


def test_colour_and_color_are_both_known() -> None:
    one, other = ids("What colour is the star?"), ids("What color is the star?")
    assert TOKENIZER.unk_token_id not in one + other and len(one) == len(other) and one != other


def test_answers_come_back_letter_for_letter_whole_and_in_pieces() -> None:
    answers = {OTHER_ANSWER, "yes", "no", "nothing", "it stays still", "the digit 4", *(str(n) for n in range(10))}
    answers |= {*MOTIONS, "an orange heart moving up and a cyan ring standing still", *SHAPES, *COLOURS}
    answers |= {f"at {n} seconds" for n in (0, 7, 10, 99, 100, 101, 909, 1000, 9999, 10_000, 45_321, 86_399)}
    for seed in range(25):
        _, facts = random_clip(seed)
        rng = np.random.default_rng(seed)
        answers |= {q.answer for family in FAMILIES if (q := ask(rng, facts, family))}
    for answer in answers:
        assert TOKENIZER.decode(ids(answer)) == answer
        stream = TextStream(TOKENIZER)
        assert "".join(stream.push(token) for token in ids(answer)) + stream.finish() == answer


def test_numbers_are_pairs_of_digits_that_know_their_place() -> None:
    spelt = {
        "7": ["7"],
        "42": ["42"],
        "100": ["1·", "00"],
        "305": ["3·", "05"],
        "4532": ["45·", "32"],
        "45321": ["4:", "53·", "21"],
        "86399": ["8:", "63·", "99"],
    }
    for number, tokens in spelt.items():
        assert TOKENIZER.convert_ids_to_tokens(ids(number)) == tokens
    stamp = TOKENIZER.convert_ids_to_tokens(ids("<45321.2 seconds>"))
    assert stamp == ["4:", "53·", "21", ".2", "seconds>"]
    assert TOKENIZER.convert_ids_to_tokens(ids("<25.2 seconds>")) == ["0:", "0·", "25", ".2", "seconds>"]
    assert TOKENIZER.convert_ids_to_tokens(ids("at 305 seconds a 7")) == ["at", "0:", "3·", "05", "seconds", "a", "7"]
    assert all(TOKENIZER.decode(ids(f"at {n} seconds")) == f"at {n} seconds" for n in (0, 7, 25, 305, 40_005, 86_399))
    assert len({tuple(ids(f"<{n / 2:.1f} seconds>")) for n in range(20_000)}) == 20_000


def test_seconds_may_be_written_short() -> None:
    for text in ("At 75 secs, what is on screen?", "at 75s what is on screen", "At 75 sec what is on screen"):
        assert ids(text) == ids("At 75 seconds, what is on screen?")


def test_a_strange_word_is_one_unknown_token() -> None:
    tokens = TOKENIZER.convert_ids_to_tokens(ids("What colour is the zebra?"))
    assert tokens == ["what", "colour", "is", "the", UNKNOWN]
    assert ids("xylophone") == ids("Wildebeest") == [TOKENIZER.unk_token_id]
    assert any(UNKNOWN in TOKENIZER.convert_ids_to_tokens(ids(text)) for text in PHRASES["other"])


def test_control_tokens_stand_for_themselves_and_ids_never_move() -> None:
    for number, token in enumerate(SPECIAL):
        assert ids(token) == [number]
    tokens = vocabulary()
    assert len(set(tokens)) == len(tokens) == len(TOKENIZER)
    assert TOKENIZER.convert_ids_to_tokens(list(range(len(tokens)))) == tokens
    assert (tokens[7], tokens[8], tokens[9]) == (UNKNOWN, "seconds>", "0")
