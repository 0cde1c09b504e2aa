"""The page: a player, what is being seen, and a chat in which every answer shows its evidence.

The only file that imports Gradio. Gradio carries events to the server and HTML to the browser. What
a tab shows is rendered from its `TabSession` by `ui.render`; `page.js` is the browser's part. No
handler returns what a person types, so an update never overwrites it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr
from gradio.utils import get_upload_folder

from config import ReadConfig
from errors import LonglookError
from ui import render
from ui.pictures import url_of
from ui.render import ModelInfo
from ui.suggestions import suggestions_for
from ui.viewing import Engine, TabRegistry, TabSession

CSS_PATH = Path(__file__).with_name("page.css")
SCRIPT_PATH = Path(__file__).with_name("page.js")
ICON_PATH = Path(__file__).with_name("favicon.svg")
SHOW_SECONDS = 0.1  # between updates of the page while something happens
IDLE_SECONDS = 0.5  # between them while a video is watched and nothing is asked
NO_VIDEO = "Open a video first, or pick a sample."
PICTURES = "pictures"  # subfolder for what the page shows

Html = Any  # a string, or gradio's "leave it as it is"


class Handlers:
    """What the page does when it is touched, for all tabs; a tab is known by its session hash."""

    def __init__(self, tabs: TabRegistry, samples: Sequence[Path], model: ModelInfo) -> None:
        self.tabs = tabs
        self.samples = tuple(samples)
        self.model = model

    def open_sample(self, number: int, request: gr.Request) -> None:
        """Begin watching a bundled sample."""
        path = self.samples[int(number)]
        self.tabs.begin(tab_of(request), path, path.name)

    def open_clicked_sample(self, event: gr.EventData, request: gr.Request) -> None:
        self.open_sample(event.sample, request)

    def open_upload(self, event: gr.EventData, request: gr.Request) -> None:
        """Begin watching a file that the page has just uploaded."""
        path = uploaded_file(str(event.path))
        self.tabs.begin(tab_of(request), path, str(event.name), is_upload=True)

    def open_file(self, video: str | None, request: gr.Request) -> None:
        """The same for programs; gradio has checked that the file is an upload of its own."""
        if not video:
            raise gr.Error(NO_VIDEO, print_exception=False)
        path = Path(video)
        self.tabs.begin(tab_of(request), path, path.name, is_upload=True)

    async def ask(self, event: gr.EventData, request: gr.Request) -> str | Html:
        """Queue a question of a tab. Runs on the event loop, so the order of arrival stays."""
        question = str(event.question).strip()
        tab = self.tabs.of(tab_of(request))
        if tab and question:
            tab.conversation.add(question, int(event.number))
        elif question:
            return render.unanswered_html(int(event.number), question, NO_VIDEO)
        return gr.skip()

    def stop_answer(self, event: gr.EventData, request: gr.Request) -> None:
        tab = self.tabs.of(tab_of(request))
        if tab:
            tab.conversation.stop(int(event.number))

    def stop_watching(self, request: gr.Request) -> None:
        tab = self.tabs.of(tab_of(request))
        if tab:
            tab.stop_watching()

    def follow(self, request: gr.Request) -> Iterator[list[Html]]:
        """The parts of the page, in the order of `Parts.shown`, as long as something changes."""
        shown: list[str] = []
        while True:
            tab = self.tabs.of(tab_of(request))
            if tab is None:
                return
            is_idle = tab.is_idle  # read before the rest: the last state must be shown too
            parts = self.rendered(tab)
            if parts != shown:
                yield changed_only(parts, shown)
                shown = parts
            if is_idle:
                return
            if not tab.conversation.is_busy:
                tab.conversation.wait_for_change(IDLE_SECONDS)
            time.sleep(SHOW_SECONDS)

    def rendered(self, tab: TabSession | None) -> list[str]:
        """All parts of the page that the server owns, as HTML."""
        if tab is None:
            return [
                render.player_html(""),
                render.progress_html(None, self.model),
                render.strip_html(()),
                render.suggestions_html(()),
                render.chat_html((), None),
            ]
        progress, turns = tab.progress, tab.conversation.turns
        marks = next((turn.evidence for turn in reversed(turns) if turn.evidence), ())
        has_failed = progress.state == "failed" and not progress.stats.chunks
        seen_seconds = 0.0 if has_failed else progress.pts_seconds
        suggested = suggestions_for(tab.path, self.model.is_demo, seen_seconds)
        return [
            render.player_html("" if has_failed else url_of(tab.path)),
            render.progress_html(progress, self.model, render.strongest(marks)),
            render.strip_html(progress.strip),
            render.suggestions_html(suggested),
            render.chat_html(turns, progress),
        ]

    def answer(self, question: str, request: gr.Request) -> Iterator[dict[str, Any]]:
        """For programs: the answer to one question as it grows, at last with its evidence."""
        tab = self.tabs.of(tab_of(request))
        if tab is None:
            raise gr.Error(NO_VIDEO, print_exception=False)
        if not question.strip():
            raise gr.Error("The question is empty.", print_exception=False)
        number = tab.conversation.add(question.strip()).number
        shown = None
        while not tab.closed:
            turn = tab.conversation.turn(number)
            assert turn is not None
            if turn is not shown:
                evidence = [asdict(item) for item in turn.evidence]
                yield {
                    "question": turn.question,
                    "state": turn.state,
                    "answer": turn.text,
                    "evidence": evidence,
                }
                shown = turn
            if not turn.is_open:
                return
            tab.conversation.wait_for_change(IDLE_SECONDS)

    def progress(self, request: gr.Request) -> Iterator[dict[str, Any]]:
        """For programs: how far watching has come, until it ends."""
        tab = self.tabs.of(tab_of(request))
        while tab and not tab.closed:
            is_finished = tab.finished.is_set()
            now = tab.progress
            yield {
                "title": now.title,
                "state": now.state,
                "problem": now.problem,
                "seen_seconds": now.pts_seconds,
                "keyframe_seconds": [item.pts_seconds for item in now.strip],
                "stats": asdict(now.stats),
            }
            if is_finished:
                return
            tab.finished.wait(IDLE_SECONDS)

    def leave(self, request: gr.Request) -> None:
        """The tab was closed."""
        self.tabs.close(tab_of(request))


def tab_of(request: gr.Request) -> str:
    """The browser tab that a request comes from: a random string, drawn when the page loads."""
    if not request.session_hash:
        raise gr.Error("This request belongs to no page.", print_exception=False)
    return str(request.session_hash)


def uploaded_file(text: str) -> Path:
    """The file at this path, if gradio stored it there for an upload; any other path is refused."""
    path = Path(text).resolve()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()) or PICTURES in path.parts:
        raise gr.Error("This is not an uploaded file.", print_exception=False)
    return path


def changed_only(parts: list[str], before: list[str]) -> list[Html]:
    """The parts that differ from those shown before; the others are left as they are."""
    if not before:
        return list(parts)
    return [new if new != old else gr.skip() for new, old in zip(parts, before, strict=True)]


@dataclass(frozen=True, eq=False)
class Parts:
    """The components of the page that handlers react to or change."""

    sources: gr.HTML
    player: gr.HTML
    card: gr.HTML
    strip: gr.HTML
    chat: gr.HTML
    suggestions: gr.HTML
    question: gr.HTML
    file: gr.File

    @property
    def shown(self) -> list[gr.HTML]:
        """What `Handlers.rendered` fills."""
        return [self.player, self.card, self.strip, self.suggestions, self.chat]


def part(html: str, name: str, script: str = "") -> gr.HTML:
    """A piece of the page with an id; script: what binds it to `page.js`."""
    return gr.HTML(
        html, elem_id=name, js_on_load=script or None, apply_default_css=False, padding=False
    )


def lay_out(samples: Sequence[Path], handlers: Handlers) -> Parts:
    """Create the components inside the open `gr.Blocks`."""
    player, card, strip, suggestions, chat = handlers.rendered(None)
    part(render.head_html(handlers.model), "head")
    with gr.Row(equal_height=False, elem_id="columns"):
        with gr.Column(scale=6, min_width=320, elem_id="watching"):
            sources = part(
                render.sources_html([sample_label(path) for path in samples]),
                "sources",
                "longlook.sources(element, trigger)",
            )
            shown_player = part(player, "player")
            shown_card = part(card, "progress", "longlook.card(element, trigger)")
            shown_strip = part(strip, "strip")
        with gr.Column(scale=5, min_width=320, elem_id="asking"):
            shown_chat = part(chat, "chat", "longlook.chat(element, trigger, watch)")
            shown_suggestions = part(suggestions, "suggestions", "longlook.suggestions(element)")
            question = part(
                render.question_box_html(), "question", "longlook.questionBox(element, trigger)"
            )
    file = gr.File(visible=False)
    return Parts(
        sources,
        shown_player,
        shown_card,
        shown_strip,
        shown_chat,
        shown_suggestions,
        question,
        file,
    )


def wire(parts: Parts, handlers: Handlers, preload: bool, page: gr.Blocks) -> None:
    """Connect the components to their handlers; with `preload` a fresh page opens a sample."""
    # For programs, and before the others, which would take these names for their own.
    parts.file.upload(handlers.open_file, parts.file, None, api_name="open", show_progress="hidden")
    gr.api(handlers.progress, api_name="follow", concurrency_limit=None)
    gr.api(handlers.answer, api_name="ask", concurrency_limit=None)
    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    at_once: dict[str, Any] = {**hidden, "queue": False, "trigger_mode": "multiple"}
    changes = [
        parts.sources.click(handlers.open_clicked_sample, None, None, **hidden),
        parts.sources.upload(handlers.open_upload, None, None, **hidden),
        parts.question.submit(handlers.ask, None, parts.chat, **at_once),
        parts.chat.stop(handlers.stop_answer, None, None, **at_once),
        parts.card.stop(handlers.stop_watching, None, None, **at_once),
    ]
    if preload and handlers.samples:
        changes.append(page.load(handlers.open_sample, gr.State(0), None, **hidden))
    for change in changes:
        change.then(None, None, None, js="() => longlook.follow()", **hidden)
    # One follower per tab. If a change comes while it runs, it starts once more when it ends, so
    # none is missed, and no older follower can show an older state.
    parts.chat.tick(
        handlers.follow,
        None,
        parts.shown,
        trigger_mode="always_last",
        concurrency_limit=None,
        **hidden,
    )
    page.unload(handlers.leave)


def build_page(
    engine: Engine,
    samples: Sequence[Path],
    *,
    model: ModelInfo,
    config: ReadConfig | None = None,
    preload: bool = False,
    folder: Path,
) -> tuple[gr.Blocks, TabRegistry]:
    """The page, and the sessions of its tabs, which the caller closes. folder: for pictures."""
    tabs = TabRegistry(engine, config or ReadConfig(), folder)
    with gr.Blocks(
        title="longlook", analytics_enabled=False, delete_cache=(3600, 24 * 3600), fill_width=True
    ) as page:
        handlers = Handlers(tabs, samples, model)
        wire(lay_out(samples, handlers), handlers, preload, page)
    page.queue(default_concurrency_limit=8, max_size=64)
    return page, tabs


@contextmanager
def running_page(
    engine: Engine,
    samples: Sequence[Path] = (),
    *,
    model: ModelInfo,
    config: ReadConfig | None = None,
    preload: bool = False,
    host: str = "127.0.0.1",
    port: int | None = 7860,
    max_upload: str = "8gb",
) -> Iterator[str]:
    """Serve the page while the block runs and give its address. Uploads are deleted at its end.

    port: None takes a free one. Raises LonglookError if nothing can listen at `host` and `port`.
    """
    with TemporaryDirectory(prefix="longlook-page-") as name:
        folder_before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = name  # the one way to tell gradio
        pictures = Path(name) / PICTURES
        samples = [path.resolve() for path in samples]
        page, tabs = build_page(
            engine, samples, model=model, config=config, preload=preload, folder=pictures
        )
        allowed = [*map(str, samples), str(pictures)]
        try:
            yield launched(page, host, port, max_file_size=max_upload, allowed_paths=allowed)
        finally:
            page.close(verbose=False)
            tabs.close_all()
            if folder_before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = folder_before


def launched(page: gr.Blocks, host: str, port: int | None, **options: Any) -> str:
    """Start the server of `page` on a thread and give its address."""
    script = f"<script>{SCRIPT_PATH.read_text(encoding='utf-8')}</script>"
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            inbrowser=False,
            share=False,
            theme=theme(),
            css_paths=CSS_PATH,
            head=script,
            favicon_path=ICON_PATH,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            **options,
        )
    except OSError as error:
        raise LonglookError(
            f"Nothing can listen on {host} port {port}: is a page open there already?"
        ) from error
    return str(address)


def theme() -> gr.themes.Base:
    """Gradio's own look with fonts that every system has: nothing is fetched from elsewhere."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
    mono = ["ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
    return gr.themes.Soft(primary_hue="indigo", neutral_hue="slate", font=fonts, font_mono=mono)


def serve(
    engine: Engine, samples: Sequence[Path] = (), *, on_ready: Callable[[str], None], **options: Any
) -> None:
    """Serve the page until interrupted or terminated; the options are those of `running_page`.

    on_ready: gets the address of the page.
    """
    with suppress(ValueError):  # not the main thread, where no signal can be handled
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # uploads are deleted then, too
    with running_page(engine, samples, **options) as address:
        on_ready(address)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


def sample_label(path: Path) -> str:
    return path.stem.replace("_", " ").replace("-", " ")
