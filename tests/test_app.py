"""The command line as people use it: answers on one channel, advice on the other, mistakes in one
sentence.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from app import COMMANDS, app
from errors import LonglookError
from frames import Frame
from models.calibration import Profile, RetrievalHead
from streaming.batching import BATCH_FRAMES
from streaming.engine import Engine
from streaming.ingest import PrefilledChunk
from streaming.session import Session
from tests.clips import write_clip
from tests.golden import Recipe, make, make_named, steady
from tests.tiny import save_tiny

REPOSITORY = Path(__file__).resolve().parent.parent
ANSWER = {
    "question",
    "answer",
    "evidence",
    "gaps",
    "seen_seconds",
    "duration_seconds",
    "stats",
}
STATS = {
    "frames_read",
    "chunks",
    "tokens",
    "watch_seconds",
    "first_token_seconds",
    "device_bytes",
    "host_bytes",
    "disk_bytes",
    "sparse_chunks",
    "forgotten_chunks",
    "context_tokens",
    "visual_tokens",
    "pruned_tokens",
    "keyframes",
}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
START_SECONDS = 900  # of a process on a busy machine; a limit, not an expectation


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "colours.mp4", 12)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Ctrl-C works even where the tests run in the background, for which shells switch it off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ask(model: str, *arguments: object) -> Result:
    return run("ask", *arguments, "--model", model, "--chunk-frames", 4, "--max-tokens", 8)


def answers(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def refusal(result: Result) -> str:
    """The one sentence that a mistake is told in; the last line where advice went before."""
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and "Traceback" not in result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert 10 < len(line) < 400
    return line


# Answers.


def test_json_is_one_object_per_question_and_nothing_else_on_standard_output(
    model: str, clip: Path
) -> None:
    found = answers(
        ask(model, clip, "What is shown?", "What is shown at 0:05?", "Ça va?", "--json")
    )
    assert [item["question"] for item in found] == [
        "What is shown?",
        "What is shown at 0:05?",
        "Ça va?",
    ]
    for item in found:
        assert set(item) == ANSWER and item["answer"]
        assert (item["seen_seconds"], item["duration_seconds"]) == (11.5, 12.0)
        assert set(item["stats"]) == STATS
        assert all(
            set(e) == {"start_seconds", "stop_seconds", "score", "why", "level"}
            for e in item["evidence"]
        )
        assert all(0 <= e["start_seconds"] < e["stop_seconds"] <= 12 for e in item["evidence"])
    assert (found[0]["stats"]["frames_read"], found[0]["stats"]["chunks"]) == (24, 6)
    named = found[1]["evidence"][0]
    assert (named["start_seconds"], named["stop_seconds"], named["why"]) == (4.0, 6.0, "named time")


def test_without_json_the_answers_alone_are_on_standard_output(model: str, clip: Path) -> None:
    told = ask(model, clip, "What is shown?", "What is shown at 0:05?")
    wanted = answers(ask(model, clip, "What is shown?", "What is shown at 0:05?", "--json"))
    questions = [f"Q: {item['question']}" for item in wanted]
    lines = [f"A: {item['answer']}" for item in wanted]
    assert told.stdout.splitlines() == [questions[0], lines[0], questions[1], lines[1]]
    single = ask(model, clip, "What is shown?")
    assert single.stdout.splitlines() == [wanted[0]["answer"]], "a single one stays bare"
    assert "What is shown?" not in single.stderr, "who asked knows the question"
    for words in ("0:04–0:06", "named time", "recent", "calibrate"):
        assert words in told.stderr


def test_a_real_clip_is_watched_to_its_end(model: str, shared_videos: Path) -> None:
    (found,) = answers(ask(model, shared_videos / "mdn_frog.webm", "What is it?", "--json"))
    assert found["stats"]["frames_read"] == 17, "8.27 s at 2 a second"


def test_options_reach_the_reader_the_memory_and_the_answer(model: str, clip: Path) -> None:
    few = ["--fps", 1, "--recall-chunks", 0, "--max-tokens", 1, "--json"]
    (found,) = answers(run("ask", clip, "What?", "--model", model, "--chunk-frames", 2, *few))
    assert (found["stats"]["frames_read"], found["stats"]["chunks"]) == (12, 6)
    assert [item["why"] for item in found["evidence"]] == ["recent"]
    longer = answers(
        run("ask", clip, "What?", "--model", model, *few[:4], "--max-tokens", 9, "--json")
    )[0]
    assert len(longer["answer"]) > len(found["answer"])
    drawn = [
        answers(ask(model, clip, "What?", "--temperature", 2, "--seed", seed, "--json"))[0]
        for seed in (1, 1, 2)
    ]
    assert drawn[0]["answer"] == drawn[1]["answer"] != drawn[2]["answer"]


def test_pruning_is_chosen_by_name_and_told_in_the_stats(model: str, clip: Path) -> None:
    whole, half = (
        answers(ask(model, clip, "What?", "--json", *prune))[0]["stats"]
        for prune in ((), ("--prune", "novelty", "--prune-budget", 0.5))
    )
    assert (
        whole["pruned_tokens"] == 0
        and half["pruned_tokens"] + half["visual_tokens"] == whole["visual_tokens"]
        and 0 < half["visual_tokens"] <= whole["visual_tokens"] / 2
    )
    assert "--prune must be one of none, novelty" in refusal(
        ask(model, clip, "What?", "--prune", "best")
    )


def test_a_small_host_budget_forgets_the_oldest_with_advice_and_answers_all_the_same(
    model: str, clip: Path
) -> None:
    result = ask(model, clip, "What?", "--host-budget", 0, "--json")
    (found,) = answers(result)
    assert (found["stats"]["chunks"], found["stats"]["forgotten_chunks"]) == (6, 4)
    assert found["stats"]["host_bytes"] < 100_000
    assert result.stderr.count("oldest chunks are forgotten") == 1
    assert "the oldest chunks are forgotten. Give more with --host-budget." in result.stderr


def test_a_truncated_file_is_answered_with_a_warning(model: str, tmp_path: Path) -> None:
    whole = make_named(tmp_path, "constant mkv").path
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    result = ask(model, cut, "What?", "--json")
    (found,) = answers(result)
    assert 0 < found["stats"]["frames_read"] < 6
    assert "breaks off at" in result.stderr and "cut.mkv" in result.stderr


# Asking as if the stream stood at a moment.


def shortened(source: Path, target: Path, seconds: float) -> Path:
    """The packets of a clip up to a keyframe at `seconds`, as they are."""
    with av.open(str(source)) as given, av.open(str(target), "w") as taken:
        stream = taken.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if (
                packet.is_keyframe
                and packet.pts is not None
                and float(packet.pts * packet.time_base) >= seconds
            ):
                break
            if packet.dts is not None:
                packet.stream = stream
                taken.mux(packet)
    return target


def test_asking_at_a_moment_leaks_nothing_later(model: str, tmp_path: Path) -> None:
    whole = make(
        tmp_path / "whole.mkv",
        steady(96, 8),
        Recipe(options={"x264-params": "scenecut=0:bframes=0"}),
    ).path
    short = shortened(whole, tmp_path / "short.mkv", 6.0)
    asked = ["What is shown?", "What will be shown at 0:10?", "--temperature", 1.5, "--json"]

    def told(*arguments: object) -> list[tuple[Any, ...]]:
        found = answers(ask(model, *arguments, *asked))
        counts = [
            {k: v for k, v in item["stats"].items() if not k.endswith("seconds")} for item in found
        ]
        return [
            (item["answer"], item["evidence"], stats)
            for item, stats in zip(found, counts, strict=True)
        ]

    stood = told(whole, "--ask-at", 6.0)
    assert stood == told(short)
    at_the_end = told(whole)
    assert all(one[0] != other[0] for one, other in zip(stood, at_the_end, strict=True)), (
        "later pictures matter"
    )
    assert max(item["stop_seconds"] for item in stood[0][1]) <= 6.0


def test_a_skim_looks_at_the_keyframes_of_the_file(model: str, tmp_path: Path) -> None:
    whole = make(
        tmp_path / "whole.mkv", steady(96, 8), Recipe(gop=24, options={"x264-params": "scenecut=0"})
    ).path
    (skimmed,) = answers(ask(model, whole, "What is shown?", "--skim", "--json"))
    (watched,) = answers(ask(model, whole, "What is shown?", "--json"))
    assert (skimmed["stats"]["frames_read"], watched["stats"]["frames_read"]) == (4, 24)
    assert "--skim" in refusal(ask(model, whole, "What?", "--skim", "--session", tmp_path / "kept"))


# Mistakes.


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that cannot be watched."""
    folder = tmp_path_factory.mktemp("strange")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "letter.mp4").write_text("Dear video,\n" * 400)
    (folder / "clip.mp4").write_text("#EXTM3U\n#EXTINF:4,\nhttp://127.0.0.1:9/segment.ts\n")
    (folder / "folder.mp4").mkdir()
    with av.open(str(folder / "song.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        sound = av.AudioFrame.from_ndarray(
            np.zeros((1, 16_000), np.float32), format="fltp", layout="mono"
        )
        sound.rate = 16_000
        for packet in [*stream.encode(sound), *stream.encode(None)]:
            container.mux(packet)
    return folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.mp4", "There is no file"),
        ("empty.mp4", "is empty"),
        ("letter.mp4", "not a video"),
        ("song.mp4", "sound but no video"),
        ("clip.mp4", "playlist"),
        ("folder.mp4", "folder"),
    ],
)
def test_what_cannot_be_watched_is_told_before_a_model_is_loaded(
    name: str, words: str, strange: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "streaming.engine.load_engine", lambda *_: pytest.fail("loaded for nothing")
    )
    result = run("ask", strange / name, "What?")
    assert words in refusal(result) and name in refusal(result)
    assert len(result.stderr.strip().splitlines()) == 1
    assert words in refusal(run("serve", strange / name))


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--fps", "0", "--fps must lie in (0, 60], not 0.0"),
        ("--fps", "-1", "--fps must lie in"),
        ("--fps", "nan", "--fps must be a number, not nan"),
        ("--fps", "inf", "--fps must be a number, not inf"),
        ("--ask-at", "-3", "--ask-at"),
        ("--ask-at", "0", "--ask-at"),
        ("--ask-at", "nan", "--ask-at"),
        ("--ask-at", "inf", "--ask-at"),
        ("--ask-at", "500", "end of colours.mp4 at 12.0 s"),
        ("--host-budget", "nan", "--host-budget"),
        ("--host-budget", "inf", "--host-budget"),
        ("--host-budget", "-1", "--host-budget"),
        ("--chunk-frames", "0", "--chunk-frames must be at least 1, not 0"),
        ("--recall-chunks", "-1", "--recall-chunks must be at least 0, not -1"),
        ("--max-tokens", "0", "--max-tokens must be at least 1, not 0"),
        ("--kv-bits", "4", "--kv-bits must be one of 16, 8, not 4"),
        ("--prune", "foo", "--prune must be one of none, novelty, not 'foo'"),
        ("--reuse", "foo", "--reuse must be one of none, novelty, not 'foo'"),
        ("--prune-budget", "3", "--prune-budget must lie in (0, 1], not 3.0"),
        ("--recall", "maybe", "--recall must be one of"),
        ("--set", "memory.window=4", "--set memory.window is not a knob; memory has borders"),
        (
            "--set",
            "memory.window_chunks=four",
            "--set memory.window_chunks must be a whole number, not 'four'",
        ),
        ("--set", "memry.window_chunks=4", "--set memry.window_chunks"),
        ("--set", "window_chunks", "--set window_chunks is no setting"),
        ("--config", "no/such.toml", "no/such.toml cannot be read"),
        ("--temperature", "nan", "--temperature must be a number"),
        ("--temperature", "inf", "--temperature"),
        ("--top-p", "0", "--top-p must lie in (0, 1], not 0.0"),
        ("--top-p", "nan", "--top-p"),
        ("--seed", "-1", "--seed must be at least 0, not -1"),
        ("--device", "warp", "warp is not a device"),
        ("--dtype", "int8", "int8 is not a dtype"),
        ("--model", "no/such/model", "no/such/model"),
        ("--model", "", "no model"),
    ],
)
def test_an_option_that_makes_no_sense_is_told(
    option: str, value: str, words: str, model: str, clip: Path
) -> None:
    result = run("ask", clip, "What?", "--model", model, option, value)
    assert words in refusal(result)
    assert len(result.stderr.strip().splitlines()) == 1


def test_what_a_user_can_mend_is_told_and_any_other_error_keeps_its_traceback(
    model: str, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours is a ValueError as well; only its kind decides."""

    def failing(error: Exception) -> Any:
        def fail(*_: object) -> Any:
            raise error

        return fail

    monkeypatch.setattr(Engine, "answer", failing(LonglookError("The engine is full.")))
    assert refusal(ask(model, clip, "What?")) == "The engine is full."
    monkeypatch.setattr(Engine, "answer", failing(ValueError("the shapes do not fit")))
    result = ask(model, clip, "What?")
    assert result.exit_code == 1 and "the shapes do not fit" not in result.stderr
    assert type(result.exception) is ValueError and str(result.exception) == "the shapes do not fit"


BROKEN = """
    import sys
    sys.argv = ["app.py", *sys.argv[1:]]
    import streaming.engine as engine

    def failing(self, *given):
        raise ValueError("the shapes do not fit")

    engine.Engine.answer = failing
    import app
    app.main()
"""


@pytest.mark.timeout(START_SECONDS)
def test_a_bug_ends_the_process_with_its_traceback_and_exit_code_1(model: str, clip: Path) -> None:
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(BROKEN),
        "ask",
        str(clip),
        "What?",
        "--model",
        model,
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "Traceback" in ran.stderr
    assert ran.stderr.strip().endswith("ValueError: the shapes do not fit")


@pytest.mark.parametrize("folder", ["streaming", "memory", "models", "keyframes"])
def test_no_message_of_the_library_names_an_option(folder: str) -> None:
    """The command line adds which option helps."""
    files = sorted((REPOSITORY / folder).rglob("*.py"))
    assert files and "--host-budget" in OPTION.findall('f"Give more with --host-budget."')
    found = [(path.name, OPTION.findall(path.read_text())) for path in files]
    assert not [item for item in found if item[1]]


def test_an_empty_question_is_told_before_anything_is_watched(model: str, clip: Path) -> None:
    assert "question is empty" in refusal(ask(model, clip, "What?", "  "))


def test_a_question_of_a_book_is_told_before_anything_is_watched(
    model: str, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "streaming.engine.load_engine", lambda *_: pytest.fail("loaded for nothing")
    )
    sentence = refusal(ask(model, clip, "What?", "x" * 4001))
    assert sentence == "A question has 4,001 characters; at most 4,000 are read."


@pytest.mark.parametrize(
    "arguments", [["ask"], ["ask", "clip.mp4"], ["ask", "clip.mp4", "What?", "--fsp", "1"], ["aks"]]
)
def test_a_wrong_call_is_shown_how_it_is_used(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == "" and "Usage" in result.stderr


def test_a_port_that_is_taken_is_told(model: str, clip: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert str(port) in refusal(run("serve", clip, "--port", port, "--model", model))


# Interruptions. A clip of six chunks goes through the model in three batches: 1, 4 and 1 of them.

SIX_CHUNKS = ("--fps", "8", "--chunk-frames", "16")  # of a clip of 12 s
CHUNKS_OF_TWO_BATCHES = 1 + BATCH_FRAMES // 16
READ_AHEAD_FRAMES = 8  # a chunk of a file is complete once its last frames are judged


def interrupting(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Ctrl-C is pressed while a chunk of this number is under way."""
    commit = Session._commit

    def pressed(session: Session, results: Sequence[PrefilledChunk], *given: Any) -> None:
        first = session._memory.num_chunks
        if first <= chunk < first + len(results):
            signal.raise_signal(signal.SIGINT)
        commit(session, results, *given)

    monkeypatch.setattr(Session, "_commit", pressed)


def test_ctrl_c_finishes_the_chunk_and_answers_from_what_was_seen(
    model: str, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--model", model, "--max-tokens", 8, *SIX_CHUNKS]
    (whole,) = answers(run("ask", clip, "What?", "--json", *options))
    assert whole["stats"]["chunks"] == 6
    interrupting(monkeypatch, chunk=2)
    result = run("ask", clip, "What?", "--json", *options)
    (found,) = answers(result)
    assert found["stats"]["chunks"] == CHUNKS_OF_TWO_BATCHES + 1, "its batch, and what was read"
    assert found["stats"]["frames_read"] == CHUNKS_OF_TWO_BATCHES * 16 + READ_AHEAD_FRAMES
    assert "from what was seen" in result.stderr
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, (
        "and Ctrl-C means what it meant before"
    )


def test_ctrl_c_before_anything_was_seen_ends_quietly(
    model: str, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Session.watch

    def pressed(session: Session, frames: Iterator[Frame], ahead: bool) -> Iterator[Any]:
        signal.raise_signal(signal.SIGINT)
        return watch(session, frames, ahead)

    monkeypatch.setattr(Session, "watch", pressed)
    result = ask(model, clip, "What?", "--json")
    assert (result.exit_code, result.stdout) == (130, "")
    assert "Stopped." in result.stderr and "Traceback" not in result.stderr


def test_ctrl_c_while_answering_ends_quietly(
    model: str, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(session: Session, question: str) -> Iterator[Any]:
        signal.raise_signal(signal.SIGINT)
        yield

    monkeypatch.setattr(Session, "ask", pressed)
    result = ask(model, clip, "What?")
    assert result.exit_code == 130 and "Traceback" not in result.stderr


# Sessions by name, and long questions.


@pytest.mark.parametrize("name", ["", " ", "\t", "a\nb", "\x1b[2J", "\udce9"])
def test_what_is_no_name_of_a_session_is_refused(
    model: str, clip: Path, name: str, tmp_path: Path
) -> None:
    """Before anything is watched, and nothing is kept or thrown away."""
    for words in (
        ("watch", clip, "--model", model, "--session", name),
        ("ask", clip, "What?", "--model", model, "--session", name),
        ("ask", "What?", "--model", model, "--session", name),
        ("sessions", "info", name),
        ("sessions", "delete", name, "--yes"),
    ):
        sentence = refusal(run(*words))
        assert sentence.startswith("A session") and sentence.isprintable()


def test_a_home_that_is_not_there_is_told() -> None:
    assert "no home folder" in refusal(run("sessions", "info", "~nobody-of-that-name"))


LONG_QUESTIONS = {
    "ascii": "What colour was it? " * 40,
    "multi-byte": "色は何でしたか。" * 40,
    "one word": "x" * 300,
}


@pytest.mark.parametrize("question", LONG_QUESTIONS.values(), ids=LONG_QUESTIONS)
def test_a_question_may_be_longer_than_the_name_of_a_file(
    model: str, clip: Path, tmp_path: Path, question: str
) -> None:
    assert len(question.encode()) > 255
    folder = tmp_path / "kept"
    (plain,) = answers(ask(model, clip, question, "--json"))
    (first,) = answers(ask(model, clip, question, "--session", folder, "--json"))
    assert plain["question"] == first["question"] == question.strip()
    assert first["answer"] == plain["answer"]
    kept = ["--session", folder, "--json", "--model", model, "--max-tokens", 8]
    assert [item["question"] for item in answers(run("ask", question, *kept))] == [question.strip()]
    both = answers(run("ask", question, question, *kept))
    assert [item["question"] for item in both] == 2 * [question.strip()]
    assert json.loads(run("sessions", "info", folder, "--json").stdout)["questions"] == 4


def test_a_question_that_is_no_text_is_refused(model: str, clip: Path) -> None:
    """What the shell hands over undecoded, as in $'caf\\xe9'."""
    assert "UTF-8" in refusal(ask(model, clip, "caf\udce9?"))


# Help and calibration.


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_teaches_by_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout and f"longlook {command}" in result.stdout
    assert run(command, "-h").stdout == result.stdout
    assert command in run("--help").stdout


def test_calibration_shows_the_heads_and_keeps_the_profile(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = RetrievalHead(2, 3, 4, 0.0, 1.0, 1.0, 0.875, 0.9375)
    profile = Profile("tiny@0", "float32", 2, (head,), 24, 0.875, 1.0)
    monkeypatch.setattr("models.calibration.calibrate", lambda *_: profile)
    result = run("calibrate", "--model", model, "--out", tmp_path / "p.json")
    assert result.exit_code == 0, result.stderr
    assert "0.88" in result.stdout and "0.94" in result.stdout and "last 4" in result.stdout
    assert Profile.load(tmp_path / "p.json") == profile
    monkeypatch.setattr("models.calibration.calibrate", lambda *_: None)
    assert "no head" in refusal(run("calibrate", "--model", model))


def test_calibration_runs_on_a_real_checkpoint_and_what_it_keeps_is_used(
    model: str, clip: Path
) -> None:
    result = run("calibrate", "--model", model, "--needles", 8)
    found = ask(model, clip, "What?", "--json")
    if result.exit_code == 0:  # heads of random weights may hit by luck
        assert "hit@1" in result.stdout and "calibrate" not in found.stderr
    else:
        assert "no head" in refusal(result) and "calibrate" in found.stderr


# A process of its own, as in a shell.

CHILD = """
    import select, signal, sys
    sys.argv = ["app.py", *sys.argv[1:]]
    import streaming.session as session
    commit = session.Session._commit

    def tell(word):
        print(word, file=sys.stderr, flush=True)

    def waiting(self, *given):
        tell("under way")
        told = False
        while not select.select([sys.stdin], [], [], 0.05)[0]:
            if not told and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                told = True
                tell("noticed")
        sys.stdin.readline()
        commit(self, *given)

    session.Session._commit = waiting
    import app
    app.main()
"""


@pytest.fixture
def child(model: str, clip: Path) -> Iterator[subprocess.Popen[str]]:
    """`ask` in a process that waits for a line of input before each commit, and has a first chunk
    already.
    """
    command = [sys.executable, "-c", textwrap.dedent(CHILD), "ask", str(clip), "What?", "--json"]
    options = ["--model", model, *SIX_CHUNKS, "--max-tokens", "4"]
    pipes: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [*command, *options], cwd=REPOSITORY, env=environment, text=True, **pipes
    ) as process:
        wait_for(process, "under way")
        go_on(process)
        wait_for(process, "under way")
        yield process
        process.kill()


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if word in line:
            return
    pytest.fail(f"the process ended without {word!r}: {''.join(seen)}")


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.timeout(START_SECONDS)
def test_a_real_ctrl_c_stops_watching_and_answers(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGINT)
    wait_for(child, "noticed")
    told, advice = child.communicate("\n", timeout=START_SECONDS)
    assert child.returncode == 0, advice
    (line,) = told.splitlines()
    chunks = json.loads(line)["stats"]["chunks"]
    assert chunks == CHUNKS_OF_TWO_BATCHES + 1, "those of its batch, and what was read already"
    assert "Traceback" not in advice


@pytest.mark.timeout(START_SECONDS)
def test_a_second_real_ctrl_c_quits(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGINT)
    wait_for(child, "noticed")
    child.send_signal(signal.SIGINT)
    told, advice = child.communicate(timeout=START_SECONDS)
    assert (child.returncode, told) == (130, "")
    assert "Stopped." in advice and "Traceback" not in advice


@pytest.mark.timeout(START_SECONDS)
def test_a_reader_that_goes_away_ends_us_without_a_traceback(model: str, clip: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [
        sys.executable,
        "app.py",
        "ask",
        str(clip),
        "What?",
        "And then?",
        "--json",
        "--model",
        model,
    ]
    ran = subprocess.run(command, cwd=REPOSITORY, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr and "BrokenPipe" not in ran.stderr


@pytest.mark.timeout(START_SECONDS)
def test_a_mistyped_file_name_is_not_taken_for_a_question(tmp_path: Path) -> None:
    told = refusal(run("ask", tmp_path / "clpi.mp4", "What?", "--session", tmp_path / "kept"))
    assert "clpi.mp4" in told


def test_the_version_is_shown() -> None:
    told = run("--version")
    assert told.exit_code == 0
    assert told.stdout.startswith("longlook 0.")


def test_a_process_of_its_own_keeps_its_two_channels_apart(
    model: str, clip: Path, tmp_path: Path
) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    command = [
        sys.executable,
        str(REPOSITORY / "app.py"),
        "ask",
        str(clip),
        "What?",
        "And?",
        "--json",
        "--model",
        model,
    ]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert [json.loads(line)["question"] for line in ran.stdout.splitlines()] == ["What?", "And?"]
    assert "shards" not in ran.stderr and "it/s" not in ran.stderr, "no bars but our own"


def test_a_page_reuses_and_prunes_as_it_is_told(
    model: str, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ui import demo as page

    monkeypatch.setattr("ui.cli.opening.check_port", lambda *_: None)

    served: list[Any] = []
    monkeypatch.setattr(page, "serve", lambda engine, *_, **__: served.append(engine.config))
    saved = ("--reuse", "novelty", "--prune", "novelty", "--prune-budget", 0.4)
    for options in ((), (*saved, "--set", "memory.recall=never")):
        assert run("serve", clip, "--model", model, *options).exit_code == 0
    plain, saving = served
    assert (plain.reuse.strategy, plain.prune.strategy) == ("none", "none")
    assert (saving.reuse.strategy, saving.prune.strategy, saving.prune.budget) == (
        "novelty",
        "novelty",
        0.4,
    )
    assert (plain.memory.recall, saving.memory.recall) == ("always", "never")
