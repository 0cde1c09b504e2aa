"""The questions of one browser tab: kept in the order asked, answered one after the other.

Every question has its own immutable `Turn`, which carries the answer together with the evidence and
the pictures of that answer. The page shows snapshots of the turns and never changes them.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from threading import Condition, Thread
from typing import Protocol

from errors import LonglookError, Notice
from streaming.events import Answer, AnswerPiece, AskEvent, Evidence

MAX_QUESTION_CHARACTERS = 1000
MAX_WAITING = 32  # a person cannot type faster than this, a program could
FAILED = "Something went wrong on the server while answering; its log says what."
TOO_LONG = (
    f"This question is longer than {MAX_QUESTION_CHARACTERS} characters. Please ask a shorter one."
)
TOO_MANY = f"{MAX_WAITING} questions are waiting already. Please ask again when they are answered."

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Turn:
    """One question and what has become of it.

    number: drawn by the browser, ascending in the order of asking.
    state: "waiting", "answering", "done", "stopped" or "failed"; `text` says why it failed.
    pictures: URL of a picture for each evidence, "" for one without; None until they are read.
    seen_seconds: how far had been watched when it was answered; None for the whole video.
    """

    number: int
    question: str
    state: str = "waiting"
    text: str = ""
    evidence: tuple[Evidence, ...] = ()
    pictures: tuple[str, ...] | None = None
    notices: tuple[str, ...] = ()
    seen_seconds: float | None = None

    @property
    def is_open(self) -> bool:
        return self.state in ("waiting", "answering")


class Answerer(Protocol):
    """What a conversation asks. All of it is called on the conversation's own thread."""

    def wait_until_askable(self) -> str:
        """Wait until questions can be answered; return why they never can, or nothing."""
        ...

    def seen_so_far(self) -> float | None:
        """How far the video has been watched, in seconds; None if to its end."""
        ...

    def answer(self, question: str) -> Iterator[AskEvent]: ...
    def pictures_of(self, evidence: tuple[Evidence, ...]) -> tuple[str, ...]: ...


class Conversation:
    """Turns in the order of asking, and the thread that answers them."""

    def __init__(self, answerer: Answerer) -> None:
        self._answerer = answerer
        self._turns: list[Turn] = []  # replaced in place, only under the condition
        self._changed = Condition()
        self._closed = False
        self._thread = Thread(target=self._answer_all, name="conversation", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def turns(self) -> tuple[Turn, ...]:
        with self._changed:
            return tuple(self._turns)

    @property
    def is_busy(self) -> bool:
        """Whether a turn will still change."""
        return any(
            turn.is_open or (turn.state == "done" and turn.pictures is None) for turn in self.turns
        )

    def turn(self, number: int) -> Turn | None:
        return next((turn for turn in self.turns if turn.number == number), None)

    def add(self, question: str, number: int | None = None) -> Turn:
        """Put a question at its place in the queue; a question that is refused says so as a turn.

        number: None takes the next one. A number that is there already changes nothing.
        """
        with self._changed:
            if number is None:
                number = self._turns[-1].number + 1 if self._turns else 0
            known = next((turn for turn in self._turns if turn.number == number), None)
            if known is not None:
                return known
            turn = Turn(number, question)
            if len(question) > MAX_QUESTION_CHARACTERS:
                short = question[:MAX_QUESTION_CHARACTERS] + "…"
                turn = Turn(number, short, "failed", TOO_LONG)
            elif sum(turn.is_open for turn in self._turns) >= MAX_WAITING:
                turn = Turn(number, question, "failed", TOO_MANY)
            bisect.insort(self._turns, turn, key=lambda other: other.number)
            self._changed.notify_all()
            return turn

    def stop(self, number: int) -> None:
        """Withdraw a waiting question, or end the answer under way after its next word."""
        with self._changed:
            for i, turn in enumerate(self._turns):
                if turn.number == number and turn.is_open:
                    self._turns[i] = replace(turn, state="stopped")
            self._changed.notify_all()

    def wait_for_change(self, timeout_seconds: float) -> None:
        with self._changed:
            self._changed.wait(timeout_seconds)

    def close(self) -> None:
        """Stop answering; waits for the word under way."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _answer_all(self) -> None:
        while (turn := self._next()) is not None:
            try:
                self._answer(turn)
            except LonglookError as error:  # something that the user can mend, as a sentence
                self._update(turn.number, state="failed", text=str(error))
            except Exception:
                log.exception("an answer failed")
                self._update(turn.number, state="failed", text=FAILED)
                self._set_pictures(turn.number, ())  # the answer may be there without its pictures

    def _next(self) -> Turn | None:
        """The first waiting turn, once there is one; None when closed."""
        with self._changed:
            while not self._closed:
                waiting = next((turn for turn in self._turns if turn.state == "waiting"), None)
                if waiting is not None:
                    return waiting
                self._changed.wait()
        return None

    def _answer(self, turn: Turn) -> None:
        refusal = self._answerer.wait_until_askable()
        if refusal:
            self._update(turn.number, state="failed", text=refusal)
            return
        seen_seconds = self._answerer.seen_so_far()
        if not self._update(turn.number, state="answering", seen_seconds=seen_seconds):
            return
        text = ""
        events = self._answerer.answer(turn.question)
        # An Iterator need not have `close`, but every session's answer is a generator.
        with closing(events):  # type: ignore[type-var]
            for event in events:
                if self._closed:
                    return
                if isinstance(event, AnswerPiece):
                    text += event.text
                    if not self._update(turn.number, text=text):
                        return
                elif isinstance(event, Notice):
                    self._update(turn.number, notices=(*turn.notices, event.text))
                elif isinstance(event, Answer):
                    self._finish(turn.number, event)

    def _finish(self, number: int, answer: Answer) -> None:
        """The answer with its evidence at once, and its pictures as soon as they are read."""
        evidence = answer.evidence
        if self._update(number, state="done", text=answer.text, evidence=evidence):
            self._set_pictures(number, self._answerer.pictures_of(evidence))

    def _update(self, number: int, **changes: object) -> bool:
        """Change a turn that is still open; return whether it was."""
        with self._changed:
            for i, turn in enumerate(self._turns):
                if turn.number == number and turn.is_open:
                    self._turns[i] = replace(turn, **changes)  # type: ignore[arg-type]
                    self._changed.notify_all()
                    return True
        return False

    def _set_pictures(self, number: int, pictures: tuple[str, ...]) -> None:
        with self._changed:
            for i, turn in enumerate(self._turns):
                if turn.number == number:
                    self._turns[i] = replace(turn, pictures=pictures)
            self._changed.notify_all()
