"""The page as a person uses it, in headless Chromium; the session behind it is a stand-in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.clips import write_clip
from tests.fakes import FakeEngine
from tests.waiting import wait_until
from ui.demo import running_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMIUM_ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE_MS = 30_000

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium"),
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
    with running_page(engine, [clip], port=None) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_ARGUMENTS))
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


def ask(page: Page, question: str) -> None:
    page.locator("#question textarea").fill(question)
    page.locator("#question textarea").press("Enter")
    expect(page.locator("#chat")).to_contain_text(f"You asked: {question}", timeout=PATIENCE_MS)


def expect_player_at(page: Page, seconds: float) -> None:
    page.wait_for_function(f"Math.abs(document.querySelector('#player video').currentTime - {seconds}) < 0.01")


def test_a_sample_is_watched_and_asked_and_the_evidence_moves_the_player(page: Page) -> None:
    watch_the_sample(page)
    expect(page.locator("#progress")).to_contain_text("Watched colours.mp4 to its end at 00:11")
    ask(page, "When is it red?")
    expect(page.locator("#chat")).to_contain_text("looked at 00:00–00:02, 00:02–00:04")
    expect_player_at(page, 0)
    page.get_by_role("button", name="00:02–00:04 · recalled · 0.91").click()
    expect_player_at(page, 2)
    page.get_by_role("button", name="00:00–00:02 · recent").click()
    expect_player_at(page, 0)


def test_the_same_evidence_leads_back_after_the_player_has_moved_on(page: Page) -> None:
    watch_the_sample(page)
    ask(page, "When is it red?")
    evidence = page.get_by_role("button", name="00:02–00:04 · recalled · 0.91")
    evidence.click()
    expect_player_at(page, 2)
    page.evaluate("document.querySelector('#player video').currentTime = 7")
    expect_player_at(page, 7)
    evidence.click()
    expect_player_at(page, 2)


def test_the_evidence_shows_pictures_of_its_moments_that_move_the_player_too(page: Page) -> None:
    watch_the_sample(page)
    ask(page, "When is it green?")
    pictures = page.locator("#evidence button.thumbnail-item")
    expect(pictures).to_have_count(2)
    expect(pictures.first).to_contain_text("00:02–00:04")
    pictures.first.click()
    expect_player_at(page, 2)


def test_a_keyframe_of_the_strip_moves_the_player(page: Page) -> None:
    watch_the_sample(page)
    keyframes = page.locator("#strip button.thumbnail-item")
    expect(keyframes).to_have_count(6)
    keyframes.nth(4).click()
    expect_player_at(page, 8)


def test_an_upload_is_watched_at_once_and_played(page: Page, tmp_path: Path) -> None:
    page.locator("#player input[type=file]").set_input_files(write_clip(tmp_path / "mine.mp4", 6))
    expect(page.locator(".look-watched")).to_contain_text("Watched mine.mp4", timeout=PATIENCE_MS)
    page.wait_for_function("document.querySelector('#player video')?.duration == 6")


def test_a_bad_upload_is_told_in_one_sentence(page: Page, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video at all" * 50)
    page.locator("#player input[type=file]").set_input_files(tmp_path / "broken.mp4")
    expect(page.get_by_role("alert")).to_contain_text("broken.mp4", timeout=PATIENCE_MS)


def test_a_file_name_cannot_bring_a_script_along(page: Page, tmp_path: Path) -> None:
    nasty = tmp_path / "<img src=x onerror=document.title='taken'>.mp4"
    nasty.write_bytes(b"no video at all" * 50)
    page.locator("#player input[type=file]").set_input_files(nasty)
    expect(page.get_by_role("alert")).to_be_visible(timeout=PATIENCE_MS)
    ask_nothing = "<img src=x onerror=document.title='taken'>"
    page.locator("#question textarea").fill(ask_nothing)
    page.locator("#question textarea").press("Enter")
    expect(page.locator("#chat .bot").last).to_be_visible()
    assert page.title() == "longlook"


def test_an_example_question_is_asked_with_one_click(page: Page) -> None:
    watch_the_sample(page)
    page.get_by_role("button", name="What happens in this video?").click()
    expect(page.locator("#chat")).to_contain_text("You asked: What happens in this video?")


def test_taking_the_video_away_clears_the_page_and_closes_the_session(page: Page, engine: FakeEngine) -> None:
    watch_the_sample(page)
    session = engine.sessions[-1]
    page.locator("#player").get_by_label("Clear").click()
    expect(page.locator("#progress")).to_contain_text("pick a sample")
    expect(page.locator("#strip button.thumbnail-item")).to_have_count(0)
    wait_until(lambda: session.closed)


def test_closing_the_tab_closes_its_session(page: Page, engine: FakeEngine) -> None:
    watch_the_sample(page)
    session = engine.sessions[-1]
    assert not session.closed
    page.close()
    wait_until(lambda: session.closed)


def test_the_page_talks_to_nobody_else(context: BrowserContext, address: str) -> None:
    page = context.new_page()
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    watch_the_sample(page)
    ask(page, "Who else is listening?")
    assert hosts - {""} == {urlsplit(address).netloc}
    assert not complaints


def test_a_fresh_page_can_open_with_the_first_sample(context: BrowserContext, clip: Path) -> None:
    with running_page(FakeEngine(), [clip], port=None, preload=True) as address:
        page = context.new_page()
        page.goto(address)
        expect(page.locator(".look-watched")).to_contain_text("Watched colours.mp4", timeout=PATIENCE_MS)
        page.close()
