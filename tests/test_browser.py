"""The page as a person uses it, in headless Chromium; the session behind it is a stand-in."""

from __future__ import annotations

import base64
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import av
import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from tests.clips import write_clip
from tests.fakes import FakeEngine
from tests.waiting import wait_until
from ui.demo import running_page
from ui.render import ModelInfo

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMIUM_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 30_000
DEMO = ModelInfo("demo", is_demo=True)
REAL = ModelInfo("Qwen/Qwen3-VL-4B-Instruct", is_demo=False)
SAMPLE = Path(__file__).resolve().parent.parent / "samples" / "one_minute.mp4"

pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium"
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Gradio's, of pandas
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "colours.mp4", 12)


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def address(engine: FakeEngine, clip: Path) -> Iterator[str]:
    with running_page(engine, [clip, SAMPLE], model=DEMO, port=None) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=list(CHROMIUM_ARGUMENTS)
        )
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1360, "height": 950})
    context.set_default_timeout(PATIENCE_MS)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, address: str) -> Page:
    page = context.new_page()
    page.goto(address)
    return page


def watch_the_sample(page: Page) -> None:
    page.get_by_role("button", name="Sample: colours").click()
    expect(page.locator(".look-watched")).to_be_visible(timeout=PATIENCE_MS)
    page.wait_for_function("document.querySelector('#player video')?.readyState >= 2")


def question_box(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Your question")


def ask(page: Page, question: str) -> None:
    question_box(page).fill(question)
    question_box(page).press("Enter")
    expect(page.locator("#chat")).to_contain_text(f"You asked: {question}", timeout=PATIENCE_MS)


def expect_player_at(page: Page, seconds: float, slack: float = 0.01) -> None:
    page.wait_for_function(
        f"Math.abs(document.querySelector('#player video').currentTime - {seconds}) <= {slack}"
    )


def expect_played(page: Page, start: float, stop: float) -> None:
    """The stretch is played from its start, and the player halts at its end."""
    page.wait_for_function("!document.querySelector('#player video').paused")
    assert start <= page.evaluate("document.querySelector('#player video').currentTime") <= stop
    page.wait_for_function("document.querySelector('#player video').paused")
    expect_player_at(page, stop, slack=0.5)


def drop(page: Page, path: Path) -> None:
    """Drop a file on the player, as a person does from a file manager."""
    content = base64.b64encode(path.read_bytes()).decode()
    page.evaluate(
        """([content, name]) => {
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            const carried = new DataTransfer();
            carried.items.add(new File([bytes], name, { type: "video/mp4" }));
            const options = { bubbles: true, cancelable: true, dataTransfer: carried };
            const target = document.querySelector("#player").firstElementChild;
            target.dispatchEvent(new DragEvent("dragover", options));
            target.dispatchEvent(new DragEvent("drop", options));
        }""",
        [content, path.name],
    )


def turns(page: Page) -> list[tuple[str, str]]:
    """(question, everything beside it) of the chat, in order."""
    return [
        (turn.locator(".look-question").inner_text(), turn.locator(".look-answer").inner_text())
        for turn in page.locator("#chat .look-turn").all()
    ]


def test_a_sample_is_watched_and_asked_and_the_evidence_plays(page: Page) -> None:
    watch_the_sample(page)
    expect(page.locator("#progress")).to_contain_text("Finished colours.mp4 (0:12)")
    ask(page, "When is it red?")
    expect_player_at(page, 0)
    page.get_by_role("button", name="0:02–0:04").click()
    expect_played(page, 2, 4)
    page.get_by_role("button", name="0:00–0:02").click()
    expect_played(page, 0, 2)


def test_the_same_evidence_leads_back_after_the_player_has_moved_on(page: Page) -> None:
    watch_the_sample(page)
    ask(page, "When is it red?")
    page.get_by_role("button", name="0:02–0:04").click()
    expect_played(page, 2, 4)
    page.evaluate("document.querySelector('#player video').currentTime = 7")
    expect_player_at(page, 7)
    page.get_by_role("button", name="0:02–0:04").click()
    expect_played(page, 2, 4)


def test_a_time_in_an_answer_moves_the_player(page: Page) -> None:
    watch_the_sample(page)
    question_box(page).fill("Is it green at 5 seconds?")
    question_box(page).press("Enter")
    page.get_by_role("button", name="0:05", exact=True).click()
    expect_player_at(page, 5, slack=2)


def test_a_keyframe_of_the_strip_and_the_timeline_move_the_player(page: Page) -> None:
    watch_the_sample(page)
    expect(page.locator("#strip button")).to_have_count(6)
    page.get_by_role("button", name="Go to 0:08").click()
    expect_player_at(page, 8)
    page.locator(".look-bar").click()  # in its middle
    expect_player_at(page, 6, slack=0.2)


@pytest.mark.parametrize("delay_ms", [10, pytest.param(40, marks=pytest.mark.slow)])
def test_eight_questions_typed_without_a_pause_are_all_answered_in_order(
    page: Page, engine: FakeEngine, delay_ms: int
) -> None:
    engine.word_seconds = 0.03
    try:
        watch_the_sample(page)
    finally:
        engine.word_seconds = 0.0
    questions = [f"What is there at second {number} of it?" for number in range(8)]
    box = question_box(page)
    box.click()
    for question in questions:
        page.keyboard.type(question, delay=delay_ms)
        page.keyboard.press("Enter")
    expect(page.locator("#chat .look-done")).to_have_count(8, timeout=PATIENCE_MS)
    expect(page.locator("#chat .look-moments img")).to_have_count(8, timeout=PATIENCE_MS)
    assert engine.sessions[-1].asked == questions
    assert [question for question, _ in turns(page)] == questions
    for number, (question, beside) in enumerate(turns(page)):
        assert f"You asked: {question}" in beside
        assert f"0:{number:02d}–0:{number + 2:02d}" in beside, "the evidence of this very answer"
    assert box.input_value() == ""


def test_questions_sent_at_once_are_visibly_queued_and_one_can_be_withdrawn(
    page: Page, engine: FakeEngine
) -> None:
    engine.word_seconds = 0.2
    try:
        watch_the_sample(page)
    finally:
        engine.word_seconds = 0.0
    for number in range(3):
        question_box(page).fill(f"Question {number}")
        question_box(page).press("Enter")
    expect(page.locator("#chat")).to_contain_text("Waiting for 2 questions before this one")
    page.locator("#chat .look-turn").nth(1).get_by_role("button", name="Stop").click()
    expect(page.locator("#chat .look-done")).to_have_count(2, timeout=PATIENCE_MS)
    assert engine.sessions[-1].asked == ["Question 0", "Question 2"]
    expect(page.locator("#chat .look-turn").nth(1)).to_contain_text("Stopped.")


def test_nothing_typed_is_lost_while_an_answer_is_streamed(page: Page, engine: FakeEngine) -> None:
    engine.word_seconds = 0.1
    try:
        watch_the_sample(page)
    finally:
        engine.word_seconds = 0.0
    question_box(page).click()
    page.keyboard.type("The first question")
    page.keyboard.press("Enter")
    page.keyboard.type("the next one is typed while the first is answered", delay=40)
    assert question_box(page).input_value() == "the next one is typed while the first is answered"
    expect(page.locator("#chat .look-done")).to_have_count(1, timeout=PATIENCE_MS)
    assert question_box(page).input_value() == "the next one is typed while the first is answered"


def test_nothing_typed_is_lost_while_watching_goes_on(page: Page, engine: FakeEngine) -> None:
    engine.gate = threading.Event()
    try:
        page.get_by_role("button", name="Sample: colours").click()
        question_box(page).click()
        page.keyboard.type("asked before anything was seen", delay=20)
        page.keyboard.press("Enter")
        expect(page.locator("#chat")).to_contain_text(
            "You asked: asked before", timeout=PATIENCE_MS
        )
        page.keyboard.type("half a question", delay=20)
    finally:
        engine.gate.set()
        engine.gate = None
    expect(page.locator(".look-watched")).to_be_visible(timeout=PATIENCE_MS)
    page.keyboard.type(" and its end")
    assert question_box(page).input_value() == "half a question and its end"
    expect(page.locator("#chat")).to_contain_text("had been watched")


def test_a_question_that_never_reached_the_server_is_shown_again(
    context: BrowserContext, clip: Path
) -> None:
    page = context.new_page()
    with running_page(FakeEngine(), [clip], model=DEMO, port=None) as address:
        page.goto(address)
        watch_the_sample(page)
    question_box(page).fill("Is anybody there?")
    question_box(page).press("Enter")
    expect(page.locator(".look-unsent")).to_contain_text("Is anybody there?", timeout=PATIENCE_MS)


def test_an_own_video_is_opened_by_a_button_while_a_sample_is_loaded(
    page: Page, tmp_path: Path
) -> None:
    watch_the_sample(page)
    with page.expect_file_chooser() as chosen:
        page.get_by_role("button", name="Open video…").click()
    chosen.value.set_files(write_clip(tmp_path / "mine #1, 100% & more.mp4", 6))
    expect(page.locator(".look-watched")).to_contain_text(
        "Finished mine #1, 100% & more.mp4", timeout=PATIENCE_MS
    )
    page.wait_for_function("document.querySelector('#player video')?.duration == 6")
    expect(page.locator(".look-card .look-demo")).to_contain_text(
        "knows only coloured shapes and digits"
    )


def test_an_own_video_is_opened_by_dropping_it_on_a_loaded_sample(
    page: Page, tmp_path: Path
) -> None:
    watch_the_sample(page)
    drop(page, write_clip(tmp_path / "dropped.mp4", 4))
    expect(page.locator(".look-watched")).to_contain_text(
        "Finished dropped.mp4", timeout=PATIENCE_MS
    )
    page.wait_for_function("document.querySelector('#player video')?.duration == 4")


def test_a_bad_file_is_told_in_one_sentence_in_one_place(page: Page, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video at all" * 50)
    page.locator("#sources input[type=file]").set_input_files(tmp_path / "broken.mp4")
    expect(page.locator(".look-bad")).to_contain_text("broken.mp4", timeout=PATIENCE_MS)
    expect(page.locator(".toast-body")).to_have_count(0)
    expect(page.locator("#player video")).to_have_count(0)


def test_a_video_that_the_browser_cannot_play_is_watched_and_says_so(
    page: Page, tmp_path: Path
) -> None:
    path = tmp_path / "recorder.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 64
        for number in range(32):
            picture = np.full((64, 64, 3), 8 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    page.locator("#sources input[type=file]").set_input_files(path)
    expect(page.locator(".look-watched")).to_contain_text("recorder.avi", timeout=PATIENCE_MS)
    expect(page.locator(".look-unplayable")).to_be_visible()
    watch_the_sample(page)
    expect(page.locator(".look-unplayable")).not_to_be_visible()


def test_what_people_type_and_file_names_bring_no_markup_along(page: Page, tmp_path: Path) -> None:
    nasty = tmp_path / "<img src=x onerror=document.title='taken'>.mp4"
    nasty.write_bytes(b"no video at all" * 50)
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.locator("#sources input[type=file]").set_input_files(nasty)
    expect(page.locator(".look-bad")).to_be_visible(timeout=PATIENCE_MS)
    watch_the_sample(page)
    ask(page, "<img src=x onerror=document.title='taken'> **bold** ${1 + 1} {{value}}")
    assert (
        turns(page)[0][0]
        == "<img src=x onerror=document.title='taken'> **bold** ${1 + 1} {{value}}"
    )
    assert not [url for url in requested if url.endswith("/x")]
    assert page.title() == "longlook"


def test_suggestions_fit_the_video_and_come_when_they_can_be_answered(
    page: Page, engine: FakeEngine
) -> None:
    watch_the_sample(page)
    expect(page.locator("#suggestions button")).to_have_count(0)
    engine.gate = threading.Event()
    try:
        page.get_by_role("button", name="Sample: one minute").click()
        expect(page.locator(".look-watching")).to_contain_text(
            "one_minute.mp4", timeout=PATIENCE_MS
        )
        wait_until(lambda: engine.sessions[-1].stats.chunks == 1)
        assert page.locator("#suggestions button").count() == 0, "its first thing ends at 8 seconds"
    finally:
        engine.gate.set()
        engine.gate = None
    expect(page.locator("#suggestions button")).to_have_count(5, timeout=PATIENCE_MS)
    page.get_by_role("button", name="Was there a red circle?").click()
    page.get_by_role("button", name="What colour is the heart?").click()
    expect(page.locator("#chat .look-done")).to_have_count(2, timeout=PATIENCE_MS)


def test_the_page_says_which_model_answers_and_what_it_can(
    page: Page, context: BrowserContext, clip: Path
) -> None:
    banner = page.get_by_role("note")
    expect(banner).to_contain_text("Demo model")
    expect(banner).to_contain_text("only coloured shapes and digits")
    expect(banner).to_contain_text("--model")
    with running_page(FakeEngine(), [clip], model=REAL, port=None) as address:
        real = context.new_page()
        real.goto(address)
        expect(real.get_by_role("note")).to_contain_text("Qwen/Qwen3-VL-4B-Instruct")
        expect(real.get_by_role("note")).not_to_contain_text("shapes")
        watch_the_sample(real)
        expect(real.locator("#suggestions button").first).to_have_text(
            "What happens in this video?"
        )
        real.close()


def test_asking_without_a_video_says_what_to_do(page: Page) -> None:
    question_box(page).fill("Anything?")
    question_box(page).press("Enter")
    expect(page.locator("#chat")).to_contain_text("Anything?")
    expect(page.locator("#chat")).to_contain_text("Open a video first")


def test_watching_can_be_stopped(page: Page, engine: FakeEngine) -> None:
    engine.gate = threading.Event()
    try:
        page.get_by_role("button", name="Sample: colours").click()
        wait_until(lambda: bool(engine.sessions) and engine.sessions[-1].stats.chunks == 1)
        page.locator("#progress").get_by_role("button", name="Stop").click()
        page.wait_for_timeout(500)
    finally:
        engine.gate.set()
        engine.gate = None
    expect(page.locator("#progress")).to_contain_text(
        "Stopped watching colours.mp4", timeout=PATIENCE_MS
    )


def test_another_video_clears_the_chat_and_closes_the_session(
    page: Page, engine: FakeEngine
) -> None:
    watch_the_sample(page)
    session = engine.sessions[-1]
    ask(page, "When is it red?")
    page.get_by_role("button", name="Sample: one minute").click()
    expect(page.locator("#progress")).to_contain_text("one_minute.mp4")
    expect(page.locator("#chat .look-turn")).to_have_count(0)
    wait_until(lambda: session.closed)
    expect(page.locator(".look-watched")).to_be_visible(timeout=PATIENCE_MS)
    ask(page, "And now?")


def test_closing_the_tab_closes_its_session(page: Page, engine: FakeEngine) -> None:
    watch_the_sample(page)
    session = engine.sessions[-1]
    assert not session.closed
    page.close()
    wait_until(lambda: session.closed)


def test_a_narrow_page_does_not_scroll_sideways_and_keeps_the_player_in_view(
    browser: Browser, address: str
) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(address)
    watch_the_sample(page)
    for question in ("When is it red?", "And green?", "And blue?"):
        ask(page, question)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    expect(page.locator("#chat .look-turn").last.locator(".look-question")).to_be_in_viewport()
    expect(question_box(page)).to_be_in_viewport()
    page.get_by_role("button", name="0:02–0:04").last.click()
    expect_played(page, 2, 4)
    box = page.locator("#player video").bounding_box()
    assert box is not None and 0 <= box["y"] < 844 - box["height"]
    context.close()


def test_the_page_talks_to_nobody_else_and_nothing_fails_in_it(
    context: BrowserContext, address: str
) -> None:
    page = context.new_page()
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda message: complaints.append(message.text) if message.type == "error" else None,
    )
    page.goto(address)
    watch_the_sample(page)
    ask(page, "Who else is listening?")
    assert hosts - {""} == {urlsplit(address).netloc}
    assert not complaints


def test_a_fresh_page_can_open_with_the_first_sample(context: BrowserContext, clip: Path) -> None:
    with running_page(FakeEngine(), [clip], model=DEMO, port=None, preload=True) as address:
        page = context.new_page()
        page.goto(address)
        expect(page.locator(".look-watched")).to_contain_text(
            "Finished colours.mp4", timeout=PATIENCE_MS
        )
        page.close()
