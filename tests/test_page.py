"""The page, through a real server and Gradio's own client; the session behind it is a stand-in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from config import ReadConfig
from tests.clips import write_clip
from tests.fakes import FakeEngine
from tests.waiting import wait_until
from ui.demo import running_page
from ui.viewing import Viewings

gradio_client = pytest.importorskip("gradio_client")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Gradio's, of pandas

CLIP_SECONDS = 12


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "colours.mp4", CLIP_SECONDS)


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def address(engine: FakeEngine, clip: Path) -> Iterator[str]:
    with running_page(engine, [clip], port=None, max_upload="2mb") as address:
        yield address


@pytest.fixture(scope="module")
def clients(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    folder = tmp_path_factory.mktemp("downloads")
    clients = [
        gradio_client.Client(address, verbose=False, download_files=folder, analytics_enabled=False) for _ in range(2)
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


def text_of(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def test_an_uploaded_video_is_watched_to_its_end_with_counters_and_keyframes(tab: Any, clip: Path) -> None:
    upload(tab, clip)
    card, strip = tab.predict(api_name="/follow")
    assert "Watched colours.mp4 to its end at 00:11" in card
    assert "<b>24</b><span>frames read</span>" in card
    assert "<b>1.5 MB</b><span>device memory</span>" in card
    assert "<b>750 kB</b><span>host memory</span>" in card
    assert [picture["caption"] for picture in strip] == [f"00:{2 * k:02d}" for k in range(6)]


def test_an_answer_is_streamed_and_ends_with_its_evidence(tab: Any, clip: Path) -> None:
    upload(tab, clip)
    tab.predict(api_name="/follow")
    job = tab.submit("When is it red?", [], api_name="/ask")
    chat, box = job.result(timeout=60)
    assert [message["role"] for message in chat] == ["user", "assistant"]
    assert text_of(chat[1]).startswith("You asked: When is it red? I have seen 24 frames.")
    assert text_of(chat[1]).endswith("*looked at 00:00–00:02, 00:02–00:04*")
    assert box == ""
    growing = [text_of(chat[1]) for chat, _ in job.outputs()]
    assert len(growing) >= 3
    assert len(growing[1]) < len(growing[-1])


def test_a_second_question_keeps_the_first_in_the_chat(tab: Any, clip: Path) -> None:
    upload(tab, clip)
    tab.predict(api_name="/follow")
    chat, _ = tab.predict("First?", [], api_name="/ask")
    chat, _ = tab.predict("Second?", chat, api_name="/ask")
    assert [message["role"] for message in chat] == ["user", "assistant"] * 2
    assert "First?" in text_of(chat[1])
    assert "Second?" in text_of(chat[3])


def test_questions_are_answered_while_the_video_is_still_being_watched(
    tab: Any, clip: Path, engine: FakeEngine
) -> None:
    engine.gate = threading.Event()
    try:
        upload(tab, clip)
        watching = tab.submit(api_name="/follow")
        wait_until(lambda: engine.sessions[-1].stats.chunks == 1)
        chat, _ = tab.predict("And now?", [], api_name="/ask")
        assert "I have seen 8 frames." in text_of(chat[1])
        assert not watching.done()
    finally:
        engine.gate.set()
        engine.gate = None
    assert "Watched" in watching.result(timeout=60)[0]


def test_two_tabs_see_nothing_of_each_other(tab: Any, other_tab: Any, clip: Path, tmp_path: Path) -> None:
    short = write_clip(tmp_path / "short.mp4", 4)
    upload(tab, clip)
    upload(other_tab, short)
    assert "colours.mp4" in tab.predict(api_name="/follow")[0]
    assert "short.mp4" in other_tab.predict(api_name="/follow")[0]
    assert "24 frames" in text_of(tab.predict("?", [], api_name="/ask")[0][1])
    assert "8 frames" in text_of(other_tab.predict("?", [], api_name="/ask")[0][1])


def test_asking_before_there_is_a_video_says_what_to_do(tab: Any) -> None:
    chat, _ = tab.predict("Anything?", [], api_name="/ask")
    assert text_of(chat[1]).startswith("Pick a video first")


def test_an_empty_question_changes_nothing(tab: Any) -> None:
    assert tab.predict("   ", [], api_name="/ask")[0] == []


def test_a_file_that_is_no_video_gets_one_sentence_without_the_servers_folders(tab: Any, tmp_path: Path) -> None:
    fake = tmp_path / "holiday.mp4"
    fake.write_bytes(b"this is no video" * 100)
    upload(tab, fake)
    card = tab.predict(api_name="/follow")[0]
    assert "look-bad" in card
    assert "holiday.mp4" in card
    assert "longlook-page-" not in card
    assert "Traceback" not in card
    assert "holiday.mp4" in text_of(tab.predict("What is it?", [], api_name="/ask")[0][1])


def test_a_video_after_a_bad_file_is_watched_as_usual(tab: Any, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    upload(tab, tmp_path / "empty.mp4")
    assert "look-bad" in tab.predict(api_name="/follow")[0]
    upload(tab, clip)
    assert "Watched colours.mp4" in tab.predict(api_name="/follow")[0]


def test_a_new_video_closes_the_session_of_the_one_before(tab: Any, clip: Path, engine: FakeEngine) -> None:
    upload(tab, clip)
    before = engine.sessions[-1]
    upload(tab, clip)
    assert before.closed
    assert not engine.sessions[-1].closed


@pytest.mark.parametrize("wanted", ["/etc/passwd", str(Path(__file__).resolve()), str(Path("config.py").resolve())])
def test_files_of_the_server_cannot_be_fetched(address: str, wanted: str) -> None:
    assert httpx.get(f"{address}gradio_api/file={wanted}").status_code == 403


def test_a_path_on_the_server_is_not_taken_for_an_upload(address: str, clip: Path, engine: FakeEngine) -> None:
    opened = len(engine.sessions)
    body = {"data": [{"path": str(Path(__file__).resolve()), "meta": {"_type": "gradio.FileData"}}]}
    reply = httpx.post(f"{address}gradio_api/run/open", json={**body, "session_hash": "forged"})
    assert reply.status_code != 200
    assert len(engine.sessions) == opened


def test_a_request_without_a_page_is_refused(address: str) -> None:
    assert httpx.post(f"{address}gradio_api/run/ask", json={"data": ["Hello?", []]}).status_code != 200


def test_an_upload_beyond_the_limit_is_refused(address: str) -> None:
    files = {"files": ("big.mp4", b"\0" * (3 << 20), "video/mp4")}
    assert httpx.post(f"{address}gradio_api/upload", files=files).status_code == 413


def test_only_what_the_page_needs_is_open_to_programs(tab: Any) -> None:
    endpoints = tab.view_api(return_format="dict", print_info=False)
    assert set(endpoints["named_endpoints"]) == {"/open", "/follow", "/ask"}


def test_uploads_and_sessions_are_gone_when_the_page_is(clip: Path, tmp_path: Path) -> None:
    engine = FakeEngine()
    with running_page(engine, port=None) as address:
        tab = gradio_client.Client(address, verbose=False, download_files=tmp_path, analytics_enabled=False)
        upload(tab, clip)
        folder = engine_folder()
        assert any(folder.rglob("colours.mp4"))
        tab.close()
    assert not folder.exists()
    assert all(session.closed for session in engine.sessions)


def test_a_port_that_is_taken_is_told_in_a_sentence(address: str) -> None:
    port = urlsplit(address).port
    with pytest.raises(ValueError, match=f"port {port}"), running_page(FakeEngine(), port=port):
        pass


def engine_folder() -> Path:
    from gradio.utils import get_upload_folder

    return Path(get_upload_folder())


def test_the_number_of_open_sessions_is_bounded_and_the_idlest_makes_room(clip: Path) -> None:
    engine = FakeEngine()
    viewings = Viewings(engine, ReadConfig(), limit=2)
    for tab in ("a", "b"):
        viewings.begin(tab, clip, clip.name)
    viewings.of("a")
    viewings.begin("c", clip, clip.name)
    assert [session.closed for session in engine.sessions] == [False, True, False]
    assert len(viewings) == 2
    viewings.close_all()
    assert all(session.closed for session in engine.sessions)


def test_closing_in_the_middle_of_watching_ends_its_thread(clip: Path) -> None:
    engine = FakeEngine()
    viewings = Viewings(engine, ReadConfig(queue_frames=1))
    viewing = viewings.begin("tab", clip, clip.name)
    viewings.close("tab")
    assert viewing.finished.is_set()
    assert engine.sessions[0].closed
    assert viewings.of("tab") is None
