"""The page, through a real server and Gradio's own client; the session behind it is a stand-in."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio
import httpx
import pytest

from config import ReadConfig
from streaming.reader import Reader
from tests.clips import write_clip
from tests.fakes import FakeEngine
from tests.waiting import wait_until
from ui.demo import running_page, uploaded_file
from ui.render import ModelInfo
from ui.viewing import TabRegistry

gradio_client = pytest.importorskip("gradio_client")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Gradio's, of pandas

CLIP_SECONDS = 12
DEMO = ModelInfo("demo", is_demo=True)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "colours.mp4", CLIP_SECONDS)


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def address(engine: FakeEngine, clip: Path) -> Iterator[str]:
    with running_page(engine, [clip], model=DEMO, port=None, max_upload="2mb") as address:
        yield address


@pytest.fixture(scope="module")
def clients(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    folder = tmp_path_factory.mktemp("downloads")
    clients = [
        gradio_client.Client(address, verbose=False, download_files=folder, analytics_enabled=False)
        for _ in range(2)
    ]
    yield clients
    for client in clients:
        client.close()


@pytest.fixture
def tab(clients: list[Any]) -> Any:
    """A client that the server takes for a freshly opened page."""
    clients[0].reset_session()
    return clients[0]


@pytest.fixture
def other_tab(clients: list[Any]) -> Any:
    clients[1].reset_session()
    return clients[1]


def upload(tab: Any, path: Path) -> None:
    tab.predict(gradio_client.handle_file(path), api_name="/open")


def test_an_uploaded_video_is_watched_to_its_end_with_counters_and_keyframes(
    tab: Any, clip: Path
) -> None:
    upload(tab, clip)
    progress = tab.predict(api_name="/follow")
    assert (progress["state"], progress["title"], progress["problem"]) == (
        "watched",
        "colours.mp4",
        "",
    )
    assert progress["seen_seconds"] == 11.5
    assert progress["stats"]["frames_read"] == 24
    assert progress["keyframe_seconds"] == [2.0 * k for k in range(6)]


def test_an_answer_grows_and_ends_with_its_evidence(
    tab: Any, clip: Path, engine: FakeEngine
) -> None:
    engine.word_seconds = 0.02
    try:
        upload(tab, clip)
    finally:
        engine.word_seconds = 0.0
    tab.predict(api_name="/follow")
    job = tab.submit("When is it red?", api_name="/ask")
    turn = job.result(timeout=60)
    assert turn["answer"] == "You asked: When is it red? I have seen 24 frames."
    assert turn["state"] == "done"
    assert [(item["start_seconds"], item["why"]) for item in turn["evidence"]] == [
        (2.0, "recalled"),
        (0.0, "recent"),
    ]
    growing = [shown["answer"] for shown in job.outputs()]
    assert len(growing) >= 3
    assert all(turn["answer"].startswith(text.rstrip()) for text in growing)
    assert growing[0] == ""


def test_questions_are_answered_while_the_video_is_still_being_watched(
    tab: Any, clip: Path, engine: FakeEngine
) -> None:
    engine.gate = threading.Event()
    try:
        upload(tab, clip)
        watching = tab.submit(api_name="/follow")
        wait_until(lambda: engine.sessions[-1].stats.chunks == 1)
        assert "I have seen 8 frames." in tab.predict("And now?", api_name="/ask")["answer"]
        assert not watching.done()
    finally:
        engine.gate.set()
        engine.gate = None
    assert watching.result(timeout=60)["state"] == "watched"


def test_a_question_asked_before_anything_was_seen_is_kept_and_answered(
    tab: Any, clip: Path
) -> None:
    upload(tab, clip)
    assert "You asked: What?" in tab.predict("What?", api_name="/ask")["answer"]


def test_two_tabs_see_nothing_of_each_other(
    tab: Any, other_tab: Any, clip: Path, tmp_path: Path
) -> None:
    short = write_clip(tmp_path / "short.mp4", 4)
    upload(tab, clip)
    upload(other_tab, short)
    assert tab.predict(api_name="/follow")["title"] == "colours.mp4"
    assert other_tab.predict(api_name="/follow")["title"] == "short.mp4"
    assert "24 frames" in tab.predict("?", api_name="/ask")["answer"]
    assert "8 frames" in other_tab.predict("?", api_name="/ask")["answer"]


@pytest.mark.parametrize("question", ["Anything?", "   "])
def test_asking_nothing_or_before_there_is_a_video_is_refused(tab: Any, question: str) -> None:
    with pytest.raises(gradio_client.exceptions.AppError, match="Open a video first"):
        tab.predict(question, api_name="/ask")


def test_an_empty_question_is_refused(tab: Any, clip: Path) -> None:
    upload(tab, clip)
    with pytest.raises(gradio_client.exceptions.AppError, match="question is empty"):
        tab.predict("   ", api_name="/ask")


def test_a_file_that_is_no_video_gets_one_sentence_without_the_servers_folders(
    tab: Any, tmp_path: Path
) -> None:
    fake = tmp_path / "holiday.mp4"
    fake.write_bytes(b"this is no video" * 100)
    upload(tab, fake)
    progress = tab.predict(api_name="/follow")
    assert progress["state"] == "failed"
    assert "holiday.mp4" in progress["problem"]
    assert "longlook-page-" not in progress["problem"]
    turn = tab.predict("What is it?", api_name="/ask")
    assert (turn["state"], turn["answer"]) == ("failed", progress["problem"])


def test_a_video_after_a_bad_file_is_watched_as_usual(tab: Any, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    upload(tab, tmp_path / "empty.mp4")
    assert tab.predict(api_name="/follow")["state"] == "failed"
    upload(tab, clip)
    assert tab.predict(api_name="/follow")["state"] == "watched"


def test_a_new_video_closes_the_session_of_the_one_before(
    tab: Any, clip: Path, engine: FakeEngine
) -> None:
    upload(tab, clip)
    before = engine.sessions[-1]
    upload(tab, clip)
    assert before.closed
    assert not engine.sessions[-1].closed


@pytest.mark.parametrize(
    "wanted", ["/etc/passwd", str(Path(__file__).resolve()), str(Path("config.py").resolve())]
)
def test_files_of_the_server_cannot_be_fetched(address: str, wanted: str) -> None:
    assert httpx.get(f"{address}gradio_api/file={wanted}").status_code == 403


def test_a_path_on_the_server_is_not_taken_for_an_upload(
    address: str, clip: Path, engine: FakeEngine
) -> None:
    opened = len(engine.sessions)
    body = {"data": [{"path": str(Path(__file__).resolve()), "meta": {"_type": "gradio.FileData"}}]}
    reply = httpx.post(f"{address}gradio_api/run/open", json={**body, "session_hash": "forged"})
    assert reply.status_code != 200
    assert len(engine.sessions) == opened


@pytest.mark.parametrize("path", ["/etc/passwd", "config.py", "../config.py"])
def test_the_page_opens_no_other_file_than_an_upload(address: str, path: str) -> None:
    with pytest.raises(gradio.Error, match="not an uploaded file"):
        uploaded_file(path)
    upload_folder = engine_folder()
    assert (
        uploaded_file(str(upload_folder / "a" / "clip.mp4"))
        == (upload_folder / "a" / "clip.mp4").resolve()
    )


def test_a_request_without_a_page_is_refused(address: str) -> None:
    assert httpx.post(f"{address}gradio_api/run/ask", json={"data": ["Hello?"]}).status_code != 200


def test_an_upload_beyond_the_limit_is_refused(address: str) -> None:
    files = {"files": ("big.mp4", b"\0" * (3 << 20), "video/mp4")}
    assert httpx.post(f"{address}gradio_api/upload", files=files).status_code == 413


def test_only_what_the_page_needs_is_open_to_programs(tab: Any) -> None:
    endpoints = tab.view_api(return_format="dict", print_info=False)
    assert set(endpoints["named_endpoints"]) == {"/open", "/follow", "/ask"}


def test_uploads_and_sessions_are_gone_when_the_page_is(clip: Path, tmp_path: Path) -> None:
    engine = FakeEngine()
    with running_page(engine, model=DEMO, port=None) as address:
        tab = gradio_client.Client(
            address, verbose=False, download_files=tmp_path, analytics_enabled=False
        )
        upload(tab, clip)
        folder = engine_folder()
        assert any(folder.rglob("colours.mp4"))
        tab.close()
    assert not folder.exists()
    assert all(session.closed for session in engine.sessions)


def test_a_terminated_page_deletes_its_uploads(tmp_path: Path) -> None:
    code = (
        "from tests.fakes import FakeEngine\n"
        "from ui.demo import serve\n"
        "from ui.render import ModelInfo\n"
        "ready = lambda address: print(address, flush=True)\n"
        "serve(FakeEngine(), model=ModelInfo('demo', True), port=None, on_ready=ready)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    page = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert page.stdout is not None
    address = page.stdout.readline().strip()
    files = {"files": ("mine.mp4", b"some bytes", "video/mp4")}
    assert httpx.post(f"{address}gradio_api/upload", files=files).status_code == 200
    assert list(tmp_path.rglob("mine.mp4"))
    page.terminate()
    assert page.wait(60) == 0
    assert not list(tmp_path.rglob("mine.mp4"))


def test_a_port_that_is_taken_is_told_in_a_sentence(address: str) -> None:
    port = urlsplit(address).port
    with (
        pytest.raises(ValueError, match=f"port {port}"),
        running_page(FakeEngine(), model=DEMO, port=port),
    ):
        pass


def engine_folder() -> Path:
    from gradio.utils import get_upload_folder

    return Path(get_upload_folder())


def test_the_number_of_open_sessions_is_bounded_and_the_idlest_makes_room(
    clip: Path, tmp_path: Path
) -> None:
    engine = FakeEngine()
    tabs = TabRegistry(engine, ReadConfig(), tmp_path / "pictures", limit=2)
    for tab in ("a", "b"):
        tabs.begin(tab, clip, clip.name)
    tabs.of("a")
    tabs.begin("c", clip, clip.name)
    assert [session.closed for session in engine.sessions] == [False, True, False]
    assert len(tabs) == 2
    tabs.close_all()
    assert all(session.closed for session in engine.sessions)


def test_closing_in_the_middle_of_watching_ends_its_thread(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ui.viewing.Reader", partial(Reader, queue_frames=1))
    engine = FakeEngine()
    tabs = TabRegistry(engine, ReadConfig(), tmp_path / "pictures")
    tab = tabs.begin("tab", clip, clip.name)
    tabs.close("tab")
    assert tab.finished.is_set()
    assert engine.sessions[0].closed
    assert tabs.of("tab") is None


def test_an_upload_and_the_pictures_of_its_tab_are_deleted_with_its_session_and_a_sample_is_not(
    clip: Path, tmp_path: Path
) -> None:
    own = write_clip(tmp_path / "own.mp4", 4)
    tabs = TabRegistry(FakeEngine(), ReadConfig(), tmp_path / "pictures")
    tab = tabs.begin("tab", own, own.name, is_upload=True)
    tab.finished.wait(60)
    assert list((tmp_path / "pictures").rglob("*.jpg"))
    tabs.begin("tab", clip, clip.name)
    assert not own.exists()
    tabs.close("tab")
    assert clip.exists()
    assert not list((tmp_path / "pictures").rglob("*.jpg"))


def test_watching_can_be_stopped_and_what_was_seen_asked(clip: Path, tmp_path: Path) -> None:
    gate = threading.Event()
    engine = FakeEngine(gate)
    tabs = TabRegistry(engine, ReadConfig(), tmp_path / "pictures")
    tab = tabs.begin("tab", clip, clip.name)
    wait_until(lambda: engine.sessions[0].stats.chunks == 1)
    tab.stop_watching()
    gate.set()
    assert tab.finished.wait(60)
    assert tab.progress.state == "stopped"
    turn = tab.conversation.add("What was there?")
    wait_until(lambda: not tab.conversation.is_busy)
    answered = tab.conversation.turn(turn.number)
    assert answered is not None and "I have seen 8 frames." in answered.text
    assert answered.seen_seconds == tab.progress.pts_seconds
    tabs.close_all()
