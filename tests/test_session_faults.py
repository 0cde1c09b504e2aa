"""Sessions whose folder changes under them, cannot be written, or lost a part; and where they come
from.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from config import Config, MemoryConfig, PruneConfig
from errors import LonglookError, Notice
from memory import session_db
from memory.disk_tier import SessionError, SessionStore, is_locked, lock
from memory.folders import delete, sessions_in, summary
from memory.plain_files import DATABASE, kv_names
from models.calibration import find_profile, profile_path
from streaming.engine import Engine
from streaming.events import Answer, Watched
from streaming.session import Session
from streaming.sources.fingerprint import fingerprint
from streaming.sources.probe import probe
from streaming.sources.source import Fingerprint
from tests.golden import Recipe, make, steady
from tests.tiny import noise_frames
from tests.watching import tiny_engine

FRAMES = noise_frames(40)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Engine:
    return tiny_engine(checkpoint)


def watched(session: Session, start: int = 0, stop: int = len(FRAMES)) -> list[str]:
    """The notices of watching some of the frames."""
    return [event.text for event in session.watch(FRAMES[start:stop]) if isinstance(event, Notice)]


def told_with_answer(session: Session, question: str) -> list[str]:
    return [event.text for event in session.ask(question) if isinstance(event, Notice)]


# The recording.


def test_another_recording_of_the_same_name_is_refused(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "cam.mkv"
    make(path, steady(200, 25), Recipe())
    first = fingerprint(probe(path))
    session = engine.open(tmp_path / "s")
    session.follow("/cam.mkv", first)
    session.close()
    make(path, steady(200, 25), Recipe(draw=lambda index: FRAMES[index % 40].image))
    session = engine.open(tmp_path / "s")
    with pytest.raises(SessionError, match=r"another recording .* it begins otherwise"):
        session.follow("/cam.mkv", fingerprint(probe(path)))
    session.follow("/cam.mkv", first)
    session.close()


def test_a_recording_that_has_grown_is_the_same(engine: Engine, tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.ts", steady(400, 25), Recipe()).path.read_bytes()
    path = tmp_path / "cam.ts"
    found = []
    for share in (2, 1):
        path.write_bytes(whole[: len(whole) // share])
        found.append(fingerprint(probe(path)))
    short, long = found
    assert short.can_become(long) and not long.can_become(short)
    session = engine.open(tmp_path / "s")
    session.follow("/cam.ts", short)
    session.follow("/cam.ts", long)
    with pytest.raises(SessionError, match="is shorter"):
        session.follow("/cam.ts", short)
    session.close()


def test_a_session_of_before_takes_the_recording_as_it_is_now(
    engine: Engine, tmp_path: Path
) -> None:
    session = engine.open(tmp_path / "s")
    session.follow("/cam.ts")
    session.follow("/cam.ts", Fingerprint("a", 5))
    with pytest.raises(SessionError, match="another recording"):
        session.follow("/cam.ts", Fingerprint("b", 5))
    session.close()


# Folders that cannot be written.


@pytest.fixture
def on_read_only_medium(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a folder on a medium that cannot be written, or another user's."""
    access = os.access
    monkeypatch.setattr(
        "memory.session_db.os.access",
        lambda path, mode: access(path, mode) and mode != os.W_OK,
    )


def test_a_session_that_cannot_be_written_is_asked(
    engine: Engine, tmp_path: Path, on_read_only_medium: None
) -> None:
    session = engine.open(tmp_path / "s")
    watched(session)
    session.close()
    before = sorted(path.name for path in (tmp_path / "s").iterdir())
    reader = engine.open(tmp_path / "s", read_only=True)
    *_, answer = reader.ask("What?")
    (told,) = told_with_answer(reader, "And then?")
    assert isinstance(answer, Answer) and told.startswith("This answer was not kept")
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == before, "nothing was made"
    reader.close()
    assert summary(tmp_path / "s").chunks == 10


def test_a_session_that_was_killed_and_cannot_be_written_is_read_whole(
    engine: Engine, tmp_path: Path, on_read_only_medium: None
) -> None:
    session = engine.open(tmp_path / "s")
    watched(session)
    shutil.copytree(tmp_path / "s", tmp_path / "killed")
    assert (tmp_path / "killed" / f"{DATABASE}-wal").stat().st_size > 0
    assert summary(tmp_path / "killed").chunks == 10, "the log is read"
    session.close()


def test_a_folder_of_sessions_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(SessionError, match="permission denied"):
        sessions_in(tmp_path)


def test_without_a_home_folder_a_profile_is_looked_for_elsewhere(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert find_profile(engine.model) is None
    with pytest.raises(LonglookError, match="no home folder"):
        profile_path(engine.model)


def test_a_profile_of_another_user_is_left_alone(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = profile_path(engine.model)
    path.parent.mkdir(parents=True)
    path.write_text("not for us")
    with pytest.raises(LonglookError, match="not a retrieval profile"):
        find_profile(engine.model)
    monkeypatch.setattr("models.calibration.os.access", lambda *_: False)
    assert find_profile(engine.model) is None


# Parts that are gone.


def test_a_folder_that_loses_its_database_while_watched_is_told(
    engine: Engine, tmp_path: Path
) -> None:
    session = engine.open(tmp_path / "s")
    watched(session, 0, 8)
    (tmp_path / "s" / DATABASE).rename(tmp_path / "elsewhere")
    (told,) = watched(session, 8)
    assert "was deleted or replaced while it was being watched" in told
    session.close()


def test_a_file_that_vanishes_while_watched_is_told(engine: Engine, tmp_path: Path) -> None:
    session = engine.open(tmp_path / "s")
    watched(session, 0, 8)
    (tmp_path / "s" / "kv-dense-00000000.bin").unlink()
    (told,) = watched(session, 8)
    assert "kv-dense-00000000.bin was changed by somebody else" in told
    session.close()


def test_a_folder_of_thumbnails_that_vanishes_is_made_again(engine: Engine, tmp_path: Path) -> None:
    session = engine.open(tmp_path / "s")
    watched(session, 0, 8)
    shutil.rmtree(tmp_path / "s" / "thumbs")
    (told,) = watched(session, 8)
    assert "Watching ended there" in told
    session.close()
    again = engine.open(tmp_path / "s")
    assert watched(again, 8) == [] and again.memory.num_chunks == 10
    again.close()


def test_a_session_of_which_nothing_can_be_read_gives_no_answer(
    engine: Engine, tmp_path: Path
) -> None:
    session = engine.open(tmp_path / "s")
    watched(session)
    session.close()
    for name in kv_names(tmp_path / "s"):
        (tmp_path / "s" / name).unlink()
    reader = engine.open(tmp_path / "s", read_only=True)
    with pytest.raises(LonglookError, match="nothing of what was watched can be read"):
        list(reader.ask("What?"))
    reader.close()


def test_a_lost_log_is_told_and_a_lost_database_is_not_begun_anew(
    engine: Engine, tmp_path: Path
) -> None:
    session = engine.open(tmp_path / "s")
    watched(session)
    shutil.copytree(tmp_path / "s", tmp_path / "no log")
    session.close()
    (tmp_path / "no log" / f"{DATABASE}-wal").unlink()
    again = engine.open(tmp_path / "no log")
    assert again.memory.num_chunks == 0
    told = watched(again)
    assert told[0].startswith("Watching was ended before 10 chunk(s) had been noted down")
    assert again.memory.num_chunks == 10
    again.close()
    (tmp_path / "s" / DATABASE).unlink()
    with pytest.raises(SessionError, match="has lost its database"):
        engine.open(tmp_path / "s")
    assert kv_names(tmp_path / "s"), "nothing was thrown away"
    delete(tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_what_an_interrupted_deletion_leaves_can_be_deleted(tmp_path: Path) -> None:
    (tmp_path / "s" / "thumbs").mkdir(parents=True)
    (tmp_path / "s" / "lock").touch()
    (tmp_path / "s" / "thumbs" / "00000000.jpg").touch()
    delete(tmp_path / "s")
    assert not (tmp_path / "s").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(SessionError, match="There is no session"):
        delete(tmp_path / "mine")


def test_who_asks_whether_a_folder_is_watched_keeps_nobody_from_watching(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    lock(folder).close()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            is_locked(folder)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(300):
            lock(folder).close()
    finally:
        stop.set()
        asking.join()


# Counting.


def test_frames_are_counted_once_however_watching_was_ended(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Of a chunk the last frames may show nothing new. They lie after its last group, and a kill
    must not bring them back."""
    engine = tiny_engine(checkpoint)
    memory = MemoryConfig(chunk_frames=8)
    prune = PruneConfig(strategy="novelty", budget=1.0)
    engine = Engine(engine.model, engine.profile, Config(memory=memory, prune=prune))
    still = [
        replace(FRAMES[number // 8 * 8], pts_seconds=number / 2, index=number)
        for number in range(40)
    ]
    whole = engine.open(tmp_path / "whole")
    list(whole.watch(still))
    expected = whole.stats.frames_read, whole.memory.num_chunks, whole.memory.spans()
    whole.close()
    folder = tmp_path / "s"
    session = engine.open(folder)
    seen = 0
    for event in session.watch(still):
        if isinstance(event, Watched) and event.stats.chunks == 3:
            seen += 1
            break
    assert seen
    shutil.copytree(folder, tmp_path / "killed")
    session.close()
    again = engine.open(tmp_path / "killed")
    assert again.seen_seconds is not None
    assert again.seen_seconds > again.memory.spans()[-1][1], "its last frames showed nothing new"
    list(again.watch([frame for frame in still if frame.pts_seconds > again.seen_seconds]))
    assert (again.stats.frames_read, again.memory.num_chunks, again.memory.spans()) == expected
    again.close()


# Times.


def test_a_time_that_was_not_seen_is_told(engine: Engine) -> None:
    session = engine.open()
    watched(session)
    assert told_with_answer(session, "What is at 1:02:03?") == [
        "1:02:03 was not seen: what has been watched ends at 0:19."
    ]
    assert told_with_answer(session, "What is at 0:10?") == []
    assert told_with_answer(session, "What is shown at the end?") == []
    assert told_with_answer(session, "What is in the " + "9" * 400 + "th minute?") == []
    session.close()


def test_evidence_ends_where_the_video_does_however_seldom_it_is_looked_at(
    checkpoint: Path,
) -> None:
    engine = tiny_engine(checkpoint)
    config = replace(engine.config, read=replace(engine.config.read, fps=0.01))
    session = Engine(engine.model, engine.profile, config).open()
    list(session.watch(FRAMES[:4]))
    *_, answer = session.ask("What?")
    assert isinstance(answer, Answer)
    assert max(item.stop_seconds for item in answer.evidence) <= FRAMES[3].pts_seconds + 1
    session.close()


def test_facts_of_the_recording_are_checked_as_all_others(tmp_path: Path, engine: Engine) -> None:
    engine.open(tmp_path / "s").close()
    store = SessionStore(tmp_path / "s")
    with store._db:
        session_db.set_fact(store._db, "fingerprint", json.dumps(["a", -1]))
    store.close()
    with pytest.raises(SessionError, match="the fact 'fingerprint' cannot be"):
        SessionStore(tmp_path / "s", read_only=True)
