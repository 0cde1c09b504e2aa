"""A session remembers, answers and survives: equal to the stock model, bounded on the device, whole
after errors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from config import AnswerConfig, Config
from errors import Notice
from frames import Frame, in_parts
from memory.chunk import KVChunk
from memory.recall_policy import PlannedChunk, RecallPlan
from models.answer_batch import AnswerBatch, BatchedAnswer
from models.calibration import Profile, RetrievalHead
from models.qwen3_vl import Qwen3VL
from models.video_llm import AnswerRequest, Turn, VideoLLM
from streaming.engine import Engine
from streaming.events import Answer, AnswerPiece, Evidence, Keyframe, Thumbnail, Watched
from streaming.retriever import evidence_of
from streaming.session import Session
from tests.gated import WORDS, Gate, GatedModel
from tests.test_fidelity import QUESTION, stock_inputs
from tests.tiny import noise_frames
from tests.waiting import wait_until

NEW_TOKENS = 12
HEAD = RetrievalHead(
    layer=1, head=3, last_tokens=0, mean=0.0, std=1.0, weight=1.0, hit1=1.0, hit4=1.0
)
Given = tuple[str, Sequence[KVChunk], Sequence[Turn], AnswerConfig]


@pytest.fixture
def profile(tiny: Qwen3VL) -> Profile:
    """Not a head that retrieves: any head gives every chunk some score."""
    return Profile(
        tiny.model_id, "float32", tiny.num_heads // tiny.num_kv_heads, (HEAD,), 1, 1.0, 1.0
    )


def settings(**memory: int) -> Config:
    answer = AnswerConfig(max_new_tokens=NEW_TOKENS)
    return Config(answer=answer).overridden({"memory": {"chunk_frames": 4, **memory}})


def opened(model: VideoLLM, config: Config, profile: Profile | None = None) -> Session:
    return Engine(model, profile, config).open()


def watched(session: Session, frames: Iterable[Frame]) -> list[Watched]:
    return [event for event in session.watch(frames) if isinstance(event, Watched)]


def asked(session: Session, question: str = QUESTION) -> Answer:
    *pieces, answer = session.ask(question)
    assert isinstance(answer, Answer)
    assert answer.text == "".join(piece.text for piece in pieces if isinstance(piece, AnswerPiece))
    return answer


def given_to_the_model(model: Qwen3VL, monkeypatch: pytest.MonkeyPatch) -> list[Given]:
    """What the model will be asked from now on."""
    seen: list[Given] = []
    stock_add = AnswerBatch.add_all

    def add_all(batch: AnswerBatch, requests: Sequence[AnswerRequest]) -> list[BatchedAnswer]:
        for request in requests:
            seen.append((request.question, request.context, request.dialogue, request.options))
        return stock_add(batch, requests)

    monkeypatch.setattr(AnswerBatch, "add_all", add_all)
    return seen


def tokens_of(model: Qwen3VL, given: Given) -> list[int]:
    return list(model.answer_tokens(*given))


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def joined(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"


# What is watched is what the stock model sees.


@pytest.mark.parametrize("chunk_frames", [2, 4, 6])
def test_with_everything_in_the_window_a_session_says_the_stock_models_tokens(
    tiny: Qwen3VL,
    stock: Qwen3VLForConditionalGeneration,
    chunk_frames: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames = noise_frames(7)
    seen = given_to_the_model(tiny, monkeypatch)
    session = opened(tiny, settings(chunk_frames=chunk_frames, window_chunks=9, prefill_chunks=9))
    watched(session, iter(frames))
    answer = asked(session)
    inputs = stock_inputs(tiny, frames)
    stock.model.rope_deltas = None
    generated = stock.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[
        0, inputs["input_ids"].shape[1] :
    ]
    wanted = [int(token) for token in generated if int(token) not in tiny._stops]
    assert tokens_of(tiny, seen[0]) == wanted and len(wanted) >= 5
    assert answer.text == tiny._prompt.tokenizer.decode(wanted).replace("\ufffd", "")


def test_dense_recall_of_everything_is_the_plain_context_and_dropping_chunks_is_noticed(
    tiny: Qwen3VL, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = given_to_the_model(tiny, monkeypatch)
    kept = {"all in the window": (9, 0), "all but one recalled": (1, 9), "nothing recalled": (1, 0)}
    for window, recall in kept.values():
        session = opened(
            tiny, settings(window_chunks=window, recall_chunks=recall, prefill_chunks=1)
        )
        watched(session, noise_frames(24))
        asked(session)
    plain, recalled, dropped = (tiny.first_logits(*given[:3]) for given in seen)
    assert torch.equal(plain, recalled)
    assert float((plain - dropped).abs().max()) > 1e-3
    plain_tokens, recalled_tokens, dropped_tokens = [tokens_of(tiny, given) for given in seen[:]]
    assert plain_tokens == recalled_tokens != dropped_tokens


@pytest.mark.parametrize("with_profile", [False, True])
def test_the_window_is_in_every_context_behind_the_prefix_and_in_time_order(
    tiny: Qwen3VL, profile: Profile, with_profile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = given_to_the_model(tiny, monkeypatch)
    session = opened(
        tiny, settings(window_chunks=2, recall_chunks=3), profile if with_profile else None
    )
    for part in in_parts(noise_frames(60), 12):
        watched(session, part)
        for question in (QUESTION, "What was at 1 second?", "And in the last hour?"):
            asked(session, question)
            indices = [chunk.index for chunk in seen[-1][1]]
            newest = session.stats.chunks - 1
            assert indices == sorted(indices) and indices[0] == -1
            assert {newest - 1, newest} <= set(indices) and len(indices) <= 1 + 2 + 3


def test_a_named_time_is_looked_up_and_told_first(tiny: Qwen3VL, profile: Profile) -> None:
    session = opened(tiny, settings(recall_chunks=2), profile)
    watched(session, noise_frames(80))
    evidence = asked(session, "What is shown at 0:13?").evidence
    assert (evidence[0].start_seconds, evidence[0].stop_seconds, evidence[0].why) == (
        12.0,
        14.0,
        "named time",
    )
    others = [item for item in evidence if item.why == "recalled"]
    assert others == sorted(others, key=lambda item: -item.score)


# The device is bounded, whatever the length.


def test_a_long_stream_takes_the_device_bytes_of_a_short_one(
    tiny: Qwen3VL, profile: Profile
) -> None:
    told = {}
    for chunks in (40, 240):
        session = opened(tiny, settings(), profile)
        told[chunks] = watched(session, noise_frames(4 * chunks, 16, 16, fps=2.0))
        session._memory.check_integrity()
    short, long = told[40][-1].stats, told[240][-1].stats
    assert short.device_bytes == long.device_bytes > 0
    assert {event.stats.device_bytes for event in told[240][2:]} == {long.device_bytes}, (
        "flat once the window is full"
    )
    assert long.host_bytes > 5 * short.host_bytes, "what left the window is somewhere"
    assert (long.frames_read, long.chunks) == (960, 240)


def test_an_answer_over_a_long_past_leaves_nothing_on_the_device(
    tiny: Qwen3VL, profile: Profile
) -> None:
    session = opened(tiny, settings(), profile)
    watched(session, noise_frames(160, 16, 16))
    before = session.stats.device_bytes
    assert asked(session).stats.device_bytes == before
    watched(
        session,
        [replace(frame, pts_seconds=frame.pts_seconds + 100) for frame in noise_frames(4, 16, 16)],
    )
    assert session.stats.device_bytes == before


def test_a_full_host_memory_forgets_the_oldest_is_told_once_and_watching_goes_on() -> None:
    model = GatedModel()
    session = opened(model, settings(window_chunks=2, host_bytes=10_000))
    events = list(session.watch(noise_frames(80, 2, 2)))
    (notice,) = (event for event in events if isinstance(event, Notice))
    assert "--" not in notice.text and "the oldest chunks are forgotten" in notice.text
    assert (session.stats.chunks, session.stats.frames_read) == (20, 80)
    assert 10 < session.stats.forgotten_chunks < 18
    session._memory.check_integrity()
    assert asked(session, "What was at 0:01?").text == "".join(WORDS)
    assert model.asked[-1][1] == [-1, 18, 19], (
        "what was named is gone, and nothing else stands for it"
    )
    assert asked(session).text == "".join(WORDS)
    assert session.stats.forgotten_chunks in model.asked[-1][1], (
        "the oldest that is there is recalled"
    )


# The dialogue.


def test_the_dialogue_is_kept_and_shown_to_the_model_as_far_as_asked_for(
    tiny: Qwen3VL, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = given_to_the_model(tiny, monkeypatch)
    answers = {}
    for turns in (0, 4):
        config = settings()
        session = opened(tiny, replace(config, answer=replace(config.answer, dialogue_turns=turns)))
        watched(session, noise_frames(8))
        told = [asked(session, f"{QUESTION} {k}") for k in range(6)]
        assert [turn.question for turn in session.dialogue] == [f"{QUESTION} {k}" for k in range(6)]
        assert (
            list(seen[-1][2])
            == [Turn(answer.question, answer.text) for answer in told[:-1]][5 - turns :]
        )
        answers[turns] = tiny.first_logits(*seen[-1][:3])
    assert float((answers[0] - answers[4]).abs().max()) > 1e-3, (
        "the earlier turns are part of the prompt"
    )


def test_an_answer_that_nobody_finishes_releases_the_device_and_leaves_no_turn() -> None:
    model = GatedModel()
    session = opened(model, settings())
    watched(session, noise_frames(8, 2, 2))
    abandoned = session.ask("abandoned")
    assert next(abandoned) == AnswerPiece(WORDS[0])
    watched(
        session,
        [replace(frame, pts_seconds=frame.pts_seconds + 9) for frame in noise_frames(4, 2, 2)],
    )
    assert asked(session, "finished").text == "".join(WORDS)
    del abandoned  # closes the generator
    assert [turn.question for turn in session.dialogue] == ["finished"]
    session._memory.check_integrity()


# Errors leave the memory whole.


def test_an_error_in_the_middle_of_a_chunk_leaves_what_was_before_and_watching_can_go_on(
    tiny: Qwen3VL, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = noise_frames(16)
    for place, owner in (("encode_groups", tiny), ("prefill_batch", tiny), ("keys_of", profile)):
        session = opened(tiny, settings(), profile)
        watched(session, frames[:4])
        with monkeypatch.context() as broken:
            fail = _failing(place)
            broken.setattr(type(owner), place, fail)
            with pytest.raises(RuntimeError, match=place):
                watched(session, frames[4:8])
        session._memory.check_integrity()
        assert session.stats.frames_read == 4 and session.stats.chunks == 1
        assert len(asked(session).evidence) == 1
        assert watched(session, frames[8:])[-1].stats.chunks == 3
        assert len(asked(session).evidence) == 2, "one recalled, and the window as one"


def _failing(place: str) -> Callable[..., object]:
    def fail(*_: object) -> object:
        raise RuntimeError(place)

    return fail


def test_an_error_in_the_middle_of_an_answer_is_raised_and_the_next_question_is_answered() -> None:
    model = GatedModel()
    session = opened(model, settings())
    watched(session, noise_frames(8, 2, 2))
    model.broken = {WORDS[1]}
    answer = session.ask("first")
    assert next(answer) == AnswerPiece(WORDS[0])
    with pytest.raises(RuntimeError, match="first: two"):
        next(answer)
    model.broken = set()
    assert asked(session, "second").text == "".join(WORDS)
    assert [turn.question for turn in session.dialogue] == ["second"]


def test_an_error_of_the_source_comes_through_after_the_frames_before_it() -> None:
    """Those of a file that fill no chunk are left out: it can be read again."""

    def source() -> Iterator[Frame]:
        yield from noise_frames(6, 2, 2)
        raise OSError("unplugged")

    for is_file, num_frames in ((False, 6), (True, 4)):
        session, told = opened(GatedModel(), settings()), []
        with pytest.raises(OSError, match="unplugged"):
            for event in session.watch(source(), ahead=is_file):
                if not isinstance(event, Keyframe):  # of which a live source tells later
                    told.append(type(event))
        assert told == [Thumbnail, Watched] * (1 if is_file else 2)
        assert session.stats.frames_read == num_frames


@pytest.mark.parametrize("question", ["", "   \n"])
def test_an_empty_question_is_refused(question: str) -> None:
    session = opened(GatedModel(), settings())
    watched(session, noise_frames(4, 2, 2))
    with pytest.raises(ValueError, match="empty"):
        next(session.ask(question))


def test_a_session_that_has_seen_nothing_or_is_closed_says_so() -> None:
    session = opened(GatedModel(), settings())
    with pytest.raises(ValueError, match="nothing has been watched"):
        next(session.ask("What?"))
    watched(session, noise_frames(4, 2, 2))
    session.close()
    session.close()
    with pytest.raises(ValueError, match="closed"):
        next(session.ask("What?"))
    assert watched(session, noise_frames(4, 2, 2)) == []


# Threads: watching and asking at the same time.


def test_a_question_waits_for_the_chunk_under_way_and_goes_before_the_next() -> None:
    model = GatedModel()
    model.gates[2] = under_way = Gate()
    answers: list[Answer] = []
    engine = Engine(model, None, settings())
    session = engine.open()
    watching = in_thread(lambda: watched(session, noise_frames(20, 2, 2)))
    assert under_way.reached.wait(60)
    asking = in_thread(lambda: answers.append(asked(session, "q")))
    wait_until(lambda: engine.scheduler.num_queries == 1)
    assert not model.asked, "the device is taken"
    under_way.open()
    joined(asking, watching)
    assert model.log[:4] == ["chunk 0", "chunk 1", "chunk 2", "q: one"]
    assert model.asked[0][1] == [-1, 0, 1, 2], "the chunk under way is part of what is asked about"
    assert [line for line in model.log if line.startswith("chunk")] == [
        f"chunk {number}" for number in range(5)
    ]
    assert answers[0].text == "".join(WORDS) and session.stats.chunks == 5


def test_an_answer_goes_on_whether_its_reader_reads_or_not() -> None:
    model = GatedModel()
    session = opened(model, settings())
    watched(session, noise_frames(4, 2, 2))
    answer = session.ask("q")
    next(answer)
    wait_until(lambda: "q: three" in model.log)
    assert [event.text for event in answer if isinstance(event, AnswerPiece)] == list(WORDS[1:])


def test_a_session_closed_while_another_thread_watches_ends_the_watching_quietly() -> None:
    model = GatedModel()
    model.gates[1] = under_way = Gate()
    session = opened(model, settings())
    told: list[Watched] = []
    watching = in_thread(lambda: told.extend(watched(session, noise_frames(40, 2, 2))))
    assert under_way.reached.wait(60)
    closing = in_thread(session.close)
    under_way.open()
    joined(closing, watching)
    assert 1 <= len(told) < 10 and session._memory.num_chunks == 0


def test_an_answer_under_way_when_its_session_is_closed_is_still_finished() -> None:
    session = opened(GatedModel(), settings())
    watched(session, noise_frames(8, 2, 2))
    answer = session.ask("q")
    next(answer)
    session.close()
    *_, last = answer
    assert isinstance(last, Answer) and last.text == "".join(WORDS)


def test_questions_from_many_threads_during_watching_lose_no_count(
    tiny: Qwen3VL, profile: Profile
) -> None:
    session = opened(tiny, settings(), profile)
    frames = noise_frames(80, 16, 16)
    watched(session, frames[:8])
    answers: list[Answer] = []
    threads = [in_thread(lambda: answers.append(asked(session))) for _ in range(4)]
    watching = in_thread(lambda: watched(session, frames[8:]))
    joined(watching, *threads)
    session._memory.check_integrity()
    assert (session.stats.frames_read, session.stats.chunks) == (80, 20)
    assert len(answers) == len(session.dialogue) == 4


# What an answer rests on, for people.

SPANS = [(2.0 * k, 2.0 * k + 1.5) for k in range(8)]


def planned(*chunks: tuple[int, float, str]) -> list[tuple[float, float, float, str]]:
    plan = RecallPlan(tuple(PlannedChunk(*chunk) for chunk in chunks))  # type: ignore[arg-type]
    found: tuple[Evidence, ...] = evidence_of(plan, SPANS, now_seconds=16.0)
    return [(item.start_seconds, item.stop_seconds, item.score, item.why) for item in found]


def test_evidence_is_named_times_then_the_best_and_the_window_is_one_stretch() -> None:
    found = planned(
        (0, 0.5, "recalled"),
        (3, -1.0, "named time"),
        (4, 4.0, "recalled"),
        (6, 1.0, "recent"),
        (7, 0.0, "recent"),
    )
    assert found == [
        (6.0, 8.0, -1.0, "named time"),
        (8.0, 10.0, 4.0, "recalled"),
        (12.0, 16.0, 1.0, "recent"),
        (0.0, 2.0, 0.5, "recalled"),
    ]


def test_neighbours_of_a_named_stretch_are_one_and_recalled_neighbours_stay_apart() -> None:
    found = planned(
        (0, 1.0, "named time"),
        (1, 2.0, "named time"),
        (3, 0.0, "named time"),
        (4, 5.0, "recalled"),
        (5, 6.0, "recalled"),
    )
    assert found == [
        (0.0, 4.0, 2.0, "named time"),
        (6.0, 8.0, 0.0, "named time"),
        (10.0, 12.0, 6.0, "recalled"),
        (8.0, 10.0, 5.0, "recalled"),
    ]


def test_without_scores_what_was_recalled_comes_before_the_window() -> None:
    found = planned((0, 0.0, "recalled"), (3, 0.0, "recalled"), (7, 0.0, "recent"))
    assert [why for *_, why in found] == ["recalled", "recalled", "recent"]
    assert found[-1][1] == 16.0, "the last frame lasts for a step"


def test_a_picture_of_each_chunk_is_told_small(tiny: Qwen3VL) -> None:
    session = opened(tiny, settings())
    pictures = [
        event for event in session.watch(noise_frames(6, 300, 500)) if isinstance(event, Thumbnail)
    ]
    assert [picture.pts_seconds for picture in pictures] == [1.0, 2.5]
    assert all(picture.image.shape == (115, 192, 3) for picture in pictures)


def test_a_question_of_many_pages_is_refused_in_a_sentence_and_a_long_one_is_answered() -> None:
    session = opened(GatedModel(), settings())
    watched(session, noise_frames(4, 2, 2))
    with pytest.raises(ValueError, match="4,001 characters; at most 4,000"):
        next(session.ask("q" * 4001))
    assert asked(session, "q" * 4000).text == "".join(WORDS)
