"""The questions of a tab: in order, one at a time, each with its own evidence."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from errors import LonglookError, Notice
from streaming.events import Answer, AnswerPiece, AskEvent, Evidence, Stats
from tests.waiting import wait_until
from ui.conversation import MAX_QUESTION_CHARACTERS, MAX_WAITING, Conversation, Turn


class FakeAnswerer:
    """Answers with the question itself, one word at a time through a gate."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.asked: list[str] = []
        self.refusal = ""
        self.seen_seconds: float | None = None

    def wait_until_askable(self) -> str:
        return self.refusal

    def seen_so_far(self) -> float | None:
        return self.seen_seconds

    def answer(self, question: str) -> Iterator[AskEvent]:
        self.asked.append(question)
        if question == "break":
            raise RuntimeError("a wire came off")
        if question == "refuse":
            raise LonglookError("That cannot be asked.")
        for word in question.split(" "):
            self.gate.acquire()
            yield AnswerPiece(word + " ")
        yield Notice("a notice")
        yield Answer(question, question, evidence_for(question), Stats())

    def pictures_of(self, evidence: tuple[Evidence, ...]) -> tuple[str, ...]:
        return tuple(f"{item.start_seconds}.jpg" for item in evidence)


def evidence_for(question: str) -> tuple[Evidence, ...]:
    return (Evidence(len(question), len(question) + 1, 2.0, "recalled"),)


@pytest.fixture
def answerer() -> FakeAnswerer:
    return FakeAnswerer()


@pytest.fixture
def conversation(answerer: FakeAnswerer) -> Iterator[Conversation]:
    conversation = Conversation(answerer)
    conversation.start()
    yield conversation
    answerer.gate.release(1000)
    conversation.close()


def finished(conversation: Conversation) -> tuple[Turn, ...]:
    wait_until(lambda: not conversation.is_busy)
    return conversation.turns


def test_quick_questions_are_answered_in_order_each_with_its_own_evidence(
    conversation: Conversation, answerer: FakeAnswerer
) -> None:
    questions = [f"question {'x' * i}" for i in range(8)]
    for number, question in enumerate(questions):
        conversation.add(question, number)
    wait_until(lambda: conversation.turns[0].state == "answering")
    assert [turn.state for turn in conversation.turns[1:]] == ["waiting"] * 7
    answerer.gate.release(1000)
    turns = finished(conversation)
    assert answerer.asked == questions == [turn.question for turn in turns]
    for turn in turns:
        assert turn.text == turn.question
        assert turn.evidence == evidence_for(turn.question)
        assert turn.pictures == (f"{len(turn.question):.1f}.jpg".replace(".0", ""),)


def test_a_question_that_overtook_another_on_its_way_takes_its_place(
    conversation: Conversation, answerer: FakeAnswerer
) -> None:
    for number in (0, 2, 1):
        conversation.add(f"number {number}", number)
    assert [turn.number for turn in conversation.turns] == [0, 1, 2]
    answerer.gate.release(1000)
    finished(conversation)
    assert answerer.asked == ["number 0", "number 1", "number 2"]


def test_the_same_question_sent_twice_is_asked_once(conversation: Conversation) -> None:
    conversation.add("only once", 0)
    conversation.add("only once", 0)
    assert len(conversation.turns) == 1


def test_a_waiting_question_can_be_withdrawn(
    conversation: Conversation, answerer: FakeAnswerer
) -> None:
    for number in range(3):
        conversation.add(f"number {number}", number)
    conversation.stop(1)
    answerer.gate.release(1000)
    assert [turn.state for turn in finished(conversation)] == ["done", "stopped", "done"]
    assert answerer.asked == ["number 0", "number 2"]


def test_an_answer_under_way_can_be_stopped_and_the_next_question_follows(
    conversation: Conversation, answerer: FakeAnswerer
) -> None:
    conversation.add("one two three", 0)
    conversation.add("next", 1)
    answerer.gate.release(1)
    wait_until(lambda: conversation.turns[0].text == "one ")
    conversation.stop(0)
    answerer.gate.release(2)
    turns = finished(conversation)
    assert [(turn.state, turn.text) for turn in turns] == [("stopped", "one "), ("done", "next")]


def test_one_failed_answer_does_not_stop_the_ones_after_it(
    conversation: Conversation, answerer: FakeAnswerer
) -> None:
    for number, question in enumerate(("break", "refuse", "fine")):
        conversation.add(question, number)
    answerer.gate.release(10)
    turns = finished(conversation)
    assert [turn.state for turn in turns] == ["failed", "failed", "done"]
    assert "wire" not in turns[0].text
    assert turns[1].text == "That cannot be asked."


def test_an_answer_whose_pictures_fail_stays_and_the_next_one_follows(
    conversation: Conversation, answerer: FakeAnswerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(evidence: tuple[Evidence, ...]) -> tuple[str, ...]:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(answerer, "pictures_of", broken)
    answerer.gate.release(10)
    conversation.add("first", 0)
    conversation.add("second", 1)
    assert [(turn.state, turn.text, turn.pictures) for turn in finished(conversation)] == [
        ("done", "first", ()),
        ("done", "second", ()),
    ]


def test_what_cannot_be_asked_says_why(conversation: Conversation, answerer: FakeAnswerer) -> None:
    answerer.refusal = "clip.mp4 is no video."
    conversation.add("What?", 0)
    (turn,) = finished(conversation)
    assert (turn.state, turn.text) == ("failed", "clip.mp4 is no video.")


def test_an_answer_says_how_far_had_been_watched(
    conversation: Conversation, answerer: FakeAnswerer
) -> None:
    answerer.seen_seconds = 12.5
    answerer.gate.release(10)
    conversation.add("What?", 0)
    (turn,) = finished(conversation)
    assert turn.seen_seconds == 12.5
    assert turn.notices == ("a notice",)


def test_too_long_and_too_many_are_refused_visibly(conversation: Conversation) -> None:
    assert conversation.add("x" * (MAX_QUESTION_CHARACTERS + 1), 0).state == "failed"
    for number in range(1, MAX_WAITING + 1):
        assert conversation.add("x", number).is_open
    assert conversation.add("one too many", 99).state == "failed"


def test_closing_ends_the_thread_in_the_middle_of_an_answer(answerer: FakeAnswerer) -> None:
    conversation = Conversation(answerer)
    conversation.start()
    conversation.add("one two three", 0)
    wait_until(lambda: conversation.turns[0].state == "answering")
    closing = threading.Thread(target=conversation.close)
    closing.start()
    answerer.gate.release(1)
    closing.join(10)
    assert not closing.is_alive()
