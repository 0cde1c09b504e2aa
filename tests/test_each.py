"""Prompts put to many spans in batches give what asking one by one gives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from config import AnswerConfig
from errors import LonglookError
from memory.chunk import KVChunk
from models.choices import Tokens, spelled
from models.decode_cache import DecodeCache
from models.qwen3_vl import Qwen3VL
from models.video_llm import ChoiceRequest
from streaming.each import pack_rows
from streaming.engine import Engine, load_engine
from streaming.session import Session
from streaming.sources.file import FileSource
from streaming.span_prompts import ChunkSpan, SpanAnswer, SpanPrompt
from tests.gated import Gate, GatedModel
from tests.tiny import noise_frames
from tests.waiting import wait_until

SAMPLE = Path(__file__).parent.parent / "samples" / "one_minute.mp4"
CAPTION = SpanPrompt("What happens in this video?")
STAR = SpanPrompt("Is there a star?", "yes_no")
COLOUR = SpanPrompt("What colour is the shape?", "choice", ("red", "green", "blue", "yellow"))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load_engine("demo", device="cpu")


@pytest.fixture(scope="module")
def session(engine: Engine) -> Iterator[Session]:
    session = engine.open()
    frames = FileSource(SAMPLE, engine.config.read.fps).frames()
    for _ in session.watch(frames, ahead=True):
        pass
    yield session
    session.close()


def spans(session: Session, length: int = 1) -> list[ChunkSpan]:
    num_chunks = session.memory.num_chunks
    return [ChunkSpan(k, min(k + length, num_chunks)) for k in range(0, num_chunks, length)]


def contexts(session: Session) -> list[list[KVChunk]]:
    prefix = session._model.prefix()
    return [[prefix, *session.memory.get([span.start])] for span in spans(session)]


def one_by_one(session: Session, prompt: SpanPrompt) -> list[str]:
    options = AnswerConfig(max_new_tokens=64)
    return [
        "".join(session._model.answer(prompt.text, context, (), options)).strip()
        for context in contexts(session)
    ]


@pytest.mark.parametrize("max_rows", [1, 3, 32])
def test_texts_in_batches_of_any_size_are_those_of_asking_one_by_one(
    session: Session, max_rows: int
) -> None:
    answers = list(session.each([CAPTION], spans(session), max_rows=max_rows))
    assert [answer.text for answer in answers] == one_by_one(session, CAPTION)
    assert [answer.span for answer in answers] == spans(session)
    assert len({answer.text for answer in answers}) > 3, "all spans say the same"
    assert not any(answer.is_partial or answer.is_lost for answer in answers)


def test_a_span_sees_its_own_chunks_only(session: Session) -> None:
    """The control of the test above: with the chunks of another span texts are others."""
    moved = [replace(span, start=span.start + 1, stop=span.stop + 1) for span in spans(session)]
    answers = list(session.each([CAPTION], moved[:-1]))
    assert [answer.text for answer in answers] != one_by_one(session, CAPTION)[:-1]
    assert [answer.text for answer in answers] == one_by_one(session, CAPTION)[1:]


def test_probabilities_are_those_of_the_first_token_one_by_one(session: Session) -> None:
    answers = list(session.each([STAR], spans(session)))
    model = session._model
    assert isinstance(model, Qwen3VL)
    tokenizer = model._prompt.tokenizer
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    for answer, context in zip(answers, contexts(session), strict=True):
        logits = model.first_logits(STAR.text, context)
        expected = float(logits[[yes, no]].softmax(0)[0])
        assert answer.probability == pytest.approx(expected, abs=1e-5)
        assert answer.text == ("yes" if expected > 0.5 else "no")
    assert {answer.text for answer in answers} == {"yes", "no"}


def test_several_prompts_share_a_batch_and_come_span_by_span(session: Session) -> None:
    prompts = [CAPTION, STAR, COLOUR]
    answers = list(session.each(prompts, spans(session)))
    assert [answer.prompt for answer in answers] == prompts * len(spans(session))
    for number, prompt in enumerate(prompts):
        alone = list(session.each([prompt], spans(session)))
        together = answers[number::3]
        assert [answer.text for answer in together] == [answer.text for answer in alone]
        for one, other in zip(together, alone, strict=True):
            assert (one.probability or 0) == pytest.approx(other.probability or 0, abs=1e-5)


def test_a_span_of_several_chunks_sees_all_of_them(session: Session) -> None:
    answers = list(session.each([STAR], spans(session, length=3)))
    stars = [answer.text for answer in session.each([STAR], spans(session))]
    for answer in answers:
        wanted = "yes" if "yes" in stars[answer.span.start : answer.span.stop] else "no"
        assert answer.text == wanted


def test_choices_of_several_tokens_have_the_probability_of_all_their_tokens(
    tiny: Qwen3VL,
) -> None:
    context = [tiny.prefix(), tiny.prefill(tiny.encode(noise_frames(4)), [tiny.prefix()], 0)]
    choices = (("a",), ("ab",), ("b",))
    sets = spelled(tiny._prompt.tokenizer, choices, tiny._prompt.encode)
    (got,) = tiny.choose([ChoiceRequest("What?", context, choices)])
    expected = shares(tiny, context, sets)
    assert got == pytest.approx(expected, abs=1e-5)
    # the control: without the end of an answer "a" has what belongs to "ab" as well
    without_end = shares(tiny, context, sets, ends=False)
    assert max(abs(a - b) for a, b in zip(without_end, expected, strict=True)) > 1e-3


def shares(
    tiny: Qwen3VL, context: list[KVChunk], sets: list[list[Tokens]], ends: bool = True
) -> list[float]:
    sums = [
        torch.stack([log_prob(tiny, context, tokens, ends) for tokens in forms]).logsumexp(0)
        for forms in sets
    ]
    found: list[float] = torch.stack(sums).double().softmax(0).tolist()
    return found


def test_requests_with_different_choices_share_a_batch(tiny: Qwen3VL) -> None:
    chunks = [
        tiny.prefill(tiny.encode(noise_frames(4, seed=seed)), [tiny.prefix()], 0)
        for seed in range(3)
    ]
    sets = ((("yes",), ("no",)), (("square star",), ("star",)), (("the red one",), ("no",)))
    requests = [
        ChoiceRequest(question, [tiny.prefix(), chunk], choices)
        for question, chunk, choices in zip(("A?", "Is it so?", "What?"), chunks, sets, strict=True)
    ]
    together = tiny.choose(requests)
    for request, got in zip(requests, together, strict=True):
        assert got == pytest.approx(tiny.choose([request])[0], abs=1e-5)
        assert sum(got) == pytest.approx(1)


def log_prob(tiny: Qwen3VL, context: list[KVChunk], tokens: Tokens, ends: bool) -> torch.Tensor:
    """Of these tokens as an answer, from one stock-like pass over question and answer."""
    prompt = tiny._prompt.question("What?", ())
    cache = DecodeCache()
    row = tiny._decoder.add_row(cache, context, len(prompt) + len(tokens))
    states = tiny._decoder.append_prompts(cache, [row], [[*prompt, *tokens]])
    log_probs = tiny._decoder.head(states).log_softmax(-1)[len(prompt) - 1 :]
    total = sum((log_probs[k, token] for k, token in enumerate(tokens)), torch.zeros(()))
    return total + log_probs[-1, sorted(tiny._stops)].logsumexp(0) if ends else total


def test_live_work_goes_first() -> None:
    model = GatedModel()
    engine = Engine(model, None)
    session = engine.open()
    for _ in session.watch(noise_frames(32)):
        pass
    gate = model.gates["one "] = Gate()
    answers: list[SpanAnswer] = []
    thread = threading.Thread(
        target=lambda: answers.extend(session.each([SpanPrompt("caption?")], [ChunkSpan(0, 1)])),
        daemon=True,
    )
    thread.start()
    assert gate.reached.wait(60)
    asked = threading.Thread(target=lambda: list(session.ask("question?")), daemon=True)
    asked.start()
    wait_until(lambda: engine.scheduler.num_queries == 1)
    gate.open()
    asked.join(60)
    thread.join(60)
    assert [answer.text for answer in answers] == ["one two three"]
    lines = [line for line in model.log if "?" in line]
    assert lines.index("question?: three") < lines.index("caption?: three")


def test_a_run_that_is_cancelled_gives_what_it_has_and_says_so() -> None:
    model = GatedModel()
    session = Engine(model, None).open()
    for _ in session.watch(noise_frames(32)):
        pass
    gate = model.gates["two "] = Gate()
    cancel = threading.Event()
    answers: list[SpanAnswer] = []
    run = session.each([SpanPrompt("caption?")], [ChunkSpan(0, 1), ChunkSpan(1, 2)], cancel=cancel)
    thread = threading.Thread(target=lambda: answers.extend(run), daemon=True)
    thread.start()
    assert gate.reached.wait(60)
    cancel.set()
    gate.open()
    thread.join(60)
    assert [(answer.text, answer.is_partial) for answer in answers] == [("one two", True)] * 2


def test_an_error_of_the_device_is_raised_where_the_answers_are_taken() -> None:
    model = GatedModel()
    session = Engine(model, None).open()
    for _ in session.watch(noise_frames(32)):
        pass
    model.broken.add("two ")
    with pytest.raises(RuntimeError, match="the device failed"):
        list(session.each([SpanPrompt("caption?")], [ChunkSpan(0, 1)]))
    model.broken.clear()
    assert len(list(session.each([SpanPrompt("caption?")], [ChunkSpan(0, 1)]))) == 1


def test_bad_spans_and_prompts_get_a_sentence(session: Session) -> None:
    with pytest.raises(LonglookError, match="has not been watched"):
        list(session.each([CAPTION], [ChunkSpan(0, 1000)]))
    with pytest.raises(LonglookError, match="no span"):
        ChunkSpan(3, 3)
    with pytest.raises(LonglookError, match="empty"):
        SpanPrompt("  ")
    with pytest.raises(LonglookError, match="two different"):
        SpanPrompt("What?", "choice", ("a", "a"))
    unknown = SpanPrompt("What?", "choice", ("red", "zzgrblx"))
    with pytest.raises(LonglookError, match="no words"):
        list(session.each([unknown], spans(session)))


def test_batches_keep_the_prompts_of_a_span_together() -> None:
    rows = list(pack_rows([ChunkSpan(k, k + 1) for k in range(3)], [CAPTION, STAR], max_rows=4))
    assert [len(batch) for batch in rows] == [4, 2]
    assert [span.start for batch in rows for span, _ in batch] == [0, 0, 1, 1, 2, 2]
