"""The page: a player, what is being seen, and a chat whose answers show where they come from.

The only file that imports Gradio. It wires components to a `Viewing` per browser tab and renders its records with
`ui.render`; it never sees a frame of the stream, a tensor or the engine's insides.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr

from config import ReadConfig
from ui.render import Progress, answer_markdown, evidence_label, gallery, paced, progress_html
from ui.viewing import Engine, Viewing, Viewings

CSS_PATH = Path(__file__).with_name("page.css")
QUESTIONS = (
    "What happens in this video?",
    "When does the star appear?",
    "What colour is the circle?",
    "How many shapes are there at 00:20?",
)
MAX_TIMES = 8  # evidence buttons; an answer rests on a window and a few recalled chunks
REFRESH_SECONDS = 0.5  # of the progress card
CHAT_SECONDS = 0.1  # between updates of a growing answer
HEAD = """# longlook
Watches a video of any length, remembers it, and answers questions about any moment, with the times it looked at."""
CHAT_PLACEHOLDER = "Ask when something happened, what was shown at a time, how many, in which order."
IDLE_HTML = '<div class="look-card"><p>Drop a video on the player, or pick a sample. Watching starts at once.</p></div>'
NOTHING_YET = "Pick a video first: drop one on the player, or choose a sample below it."

PICTURES: dict[str, Any] = {  # of a gallery that is clicked, not opened
    "show_label": False, "allow_preview": False, "object_fit": "contain", "interactive": False, "buttons": [],
}  # fmt: skip

Update = Any  # what gradio calls an update of a component
Messages = list[dict[str, Any]]


class Handlers:
    """What happens when something on the page is touched. One object for all tabs; a tab is its session hash."""

    def __init__(self, viewings: Viewings, samples: Sequence[Path]) -> None:
        self.viewings = viewings
        self.samples = tuple(samples)

    def open_upload(self, video: str | None, request: gr.Request) -> None:
        """Begin watching what was uploaded; the path is one that gradio made for an upload of its own."""
        if not video:
            raise gr.Error(NOTHING_YET, print_exception=False)
        path = Path(video)
        self.viewings.begin(tab_of(request), path, path.name)

    def open_sample(self, number: int, request: gr.Request) -> str:
        """Begin watching a bundled sample; gives its path for the player."""
        path = self.samples[int(number)]
        self.viewings.begin(tab_of(request), path, path.name)
        return str(path)

    def follow(self, request: gr.Request) -> Iterator[tuple[Update, Update]]:
        """(progress card, keyframe strip) until the video has been watched or the tab looks at another one."""
        viewing = self.viewings.of(tab_of(request))
        shown: Progress | None = None
        while viewing and not viewing.closed:
            finished = viewing.finished.is_set()  # read before the progress: the last one must be shown too
            progress = viewing.progress
            if progress is not shown:
                new_strip = shown is None or progress.strip is not shown.strip
                viewing.shown_strip = progress.strip
                yield progress_html(progress), gallery(progress.strip) if new_strip else gr.skip()
                shown = progress
            if finished:
                return
            viewing.finished.wait(REFRESH_SECONDS)

    def ask(self, question: str, history: Messages, request: gr.Request) -> Iterator[tuple[Messages, str]]:
        """(chat with the growing answer, emptied question box)."""
        question = question.strip()
        if not question:
            yield history, ""
            return
        asked = [*history, {"role": "user", "content": question}]
        viewing = self.viewings.of(tab_of(request))
        refusal = viewing.why_not_ask if viewing else NOTHING_YET
        if viewing is None or refusal:
            yield [*asked, {"role": "assistant", "content": refusal}], ""
            return
        yield [*asked, {"role": "assistant", "content": "…"}], ""
        for text, answer in paced(viewing.ask(question), CHAT_SECONDS, time.monotonic):
            content = answer_markdown(answer) if answer else text
            yield [*asked, {"role": "assistant", "content": content}], ""

    def evidence(self, request: gr.Request) -> tuple[Update, ...]:
        """(label, time buttons ..., pictures, progress card) for the last answer."""
        viewing = self.viewings.of(tab_of(request))
        items = viewing.evidence[:MAX_TIMES] if viewing else ()
        buttons = [gr.Button(value=evidence_label(item), visible=True) for item in items]
        hidden = [gr.Button(visible=False)] * (MAX_TIMES - len(items))
        pictures = viewing.evidence_pictures() if viewing and items else []
        card = progress_html(viewing.progress) if viewing else IDLE_HTML
        return (
            gr.Markdown(visible=bool(items)),
            *buttons,
            *hidden,
            gr.Gallery(value=pictures, visible=bool(pictures)),
            card,
        )

    def seek_evidence(self, number: int, request: gr.Request) -> Update:
        """Move the player to an evidence of the last answer."""
        evidence = self._viewing(request).evidence
        return gr.Video(playback_position=evidence[int(number)].start_seconds)

    def seek_clicked_evidence(self, event: gr.SelectData, request: gr.Request) -> Update:
        return self.seek_evidence(event.index, request)

    def seek_clicked_keyframe(self, event: gr.SelectData, request: gr.Request) -> Update:
        """Move the player to a picture of the strip, as it was last shown."""
        strip = self._viewing(request).shown_strip
        return gr.Video(playback_position=strip[event.index].pts_seconds)

    def leave(self, request: gr.Request) -> None:
        """The tab was closed, or its video taken away."""
        self.viewings.close(tab_of(request))

    def _viewing(self, request: gr.Request) -> Viewing:
        viewing = self.viewings.of(tab_of(request))
        if viewing is None:
            raise gr.Error(NOTHING_YET, print_exception=False)
        return viewing


def tab_of(request: gr.Request) -> str:
    """The browser tab a request comes from: a random string that its page drew when it was loaded."""
    if not request.session_hash:
        raise gr.Error("This request belongs to no page.", print_exception=False)
    return str(request.session_hash)


@dataclass(frozen=True, eq=False)
class Parts:
    """The components of the page that handlers read or change."""

    video: gr.Video
    samples: list[gr.Button]
    card: gr.HTML
    strip: gr.Gallery
    chat: gr.Chatbot
    question: gr.Textbox
    examples: list[gr.Button]
    label: gr.Markdown
    times: list[gr.Button]
    pictures: gr.Gallery


def lay_out(samples: Sequence[Path], questions: Sequence[str]) -> Parts:
    """Create the components inside the open `gr.Blocks`."""
    gr.Markdown(HEAD, elem_id="head")
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=320):
            video = gr.Video(show_label=False, sources=["upload"], height=380, elem_id="player", buttons=[])
            with gr.Row(elem_id="samples", visible=bool(samples)):
                picks = [gr.Button(f"Sample: {sample_label(path)}", size="sm") for path in samples]
            card = gr.HTML(IDLE_HTML, elem_id="progress", padding=False)
            gr.Markdown("Keyframes: click one to go there", elem_classes="look-label")
            strip = gr.Gallery(elem_id="strip", columns=6, height=104, **PICTURES)
        with gr.Column(scale=5, min_width=320):
            chat = gr.Chatbot(
                show_label=False, height=430, placeholder=CHAT_PLACEHOLDER, elem_id="chat", allow_tags=False,
                sanitize_html=True, feedback_options=None, buttons=[],
            )  # fmt: skip
            question = gr.Textbox(
                placeholder="Ask about any moment, also while watching goes on",
                show_label=False, submit_btn=True, max_lines=4, elem_id="question", autofocus=True,
            )  # fmt: skip
            with gr.Row(elem_id="questions"):
                examples = [gr.Button(text, size="sm") for text in questions]
            label = gr.Markdown("Evidence, best first: click to go there", elem_classes="look-label", visible=False)
            with gr.Row(elem_id="times"):
                times = [gr.Button("", size="sm", visible=False) for _ in range(MAX_TIMES)]
            pictures = gr.Gallery(elem_id="evidence", columns=4, height=104, visible=False, **PICTURES)
    return Parts(video, picks, card, strip, chat, question, examples, label, times, pictures)


def wire(parts: Parts, handlers: Handlers, preload: bool, page: gr.Blocks) -> None:
    """Connect the components of `parts` to `handlers`; with `preload`, a fresh page opens the first sample."""
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    cleared = [parts.chat, parts.card, parts.strip, parts.label, *parts.times, parts.pictures]

    def then_watch(opened: gr.events.Dependency, **api: Any) -> None:
        opened.success(cleared_page, None, cleared, **quiet).success(
            handlers.follow, None, [parts.card, parts.strip], trigger_mode="multiple", concurrency_limit=None, **api
        )

    public = {"show_progress": "hidden"}
    uploaded = parts.video.upload(handlers.open_upload, parts.video, None, api_name="open", **public)
    then_watch(uploaded, api_name="follow", **public)
    for number, button in enumerate(parts.samples):
        then_watch(button.click(handlers.open_sample, gr.State(number), parts.video, **quiet), **quiet)
    if preload and parts.samples:
        then_watch(page.load(handlers.open_sample, gr.State(0), parts.video, **quiet), **quiet)
    parts.video.clear(handlers.leave, None, None, **quiet).then(cleared_page, None, cleared, **quiet)
    page.unload(handlers.leave)
    wire_questions(parts, handlers, quiet)
    for number, button in enumerate(parts.times):
        button.click(handlers.seek_evidence, gr.State(number), parts.video, **quiet)
    parts.pictures.select(handlers.seek_clicked_evidence, None, parts.video, **quiet)
    parts.strip.select(handlers.seek_clicked_keyframe, None, parts.video, **quiet)


def wire_questions(parts: Parts, handlers: Handlers, quiet: dict[str, Any]) -> None:
    """The question box and the example questions ask; an answer brings its evidence."""
    found = [parts.label, *parts.times, parts.pictures, parts.card]

    def answers(ask: Callable[..., gr.events.Dependency], text: gr.Textbox | gr.Button, **options: Any) -> None:
        asked = ask(
            handlers.ask, [text, parts.chat], [parts.chat, parts.question],
            concurrency_id="device", show_progress="hidden", **options,
        )  # fmt: skip
        asked.success(handlers.evidence, None, found, **quiet)

    answers(parts.question.submit, parts.question, api_name="ask")
    for button in parts.examples:
        answers(button.click, button, api_visibility="private")


def cleared_page() -> tuple[Update, ...]:
    """(chat, card, strip, label, time buttons ..., pictures), as they are before anything was seen."""
    buttons = [gr.Button(visible=False)] * MAX_TIMES
    return [], IDLE_HTML, [], gr.Markdown(visible=False), *buttons, gr.Gallery(value=[], visible=False)


def build_page(
    engine: Engine,
    samples: Sequence[Path],
    *,
    config: ReadConfig | None = None,
    questions: Sequence[str] = QUESTIONS,
    preload: bool = False,
) -> tuple[gr.Blocks, Viewings]:
    """The page, and the viewings behind it, which the caller closes."""
    viewings = Viewings(engine, config or ReadConfig())
    with gr.Blocks(title="longlook", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        parts = lay_out(samples, questions)
        wire(parts, Handlers(viewings, samples), preload, page)
    page.queue(default_concurrency_limit=8, max_size=64)
    return page, viewings


@contextmanager
def running_page(
    engine: Engine,
    samples: Sequence[Path] = (),
    *,
    config: ReadConfig | None = None,
    questions: Sequence[str] = QUESTIONS,
    preload: bool = False,
    host: str = "127.0.0.1",
    port: int | None = 7860,
    max_upload: str = "8gb",
) -> Iterator[str]:
    """Serve the page while the block runs and give its address. Uploads live in a folder that goes with it.

    port: None takes a free one. Raises ValueError where nothing can listen at `host` and `port`.
    """
    with TemporaryDirectory(prefix="longlook-page-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # the one way to tell gradio; read when components are made
        page, viewings = build_page(engine, samples, config=config, questions=questions, preload=preload)
        try:
            yield launched(page, host, port, max_file_size=max_upload, allowed_paths=[str(path) for path in samples])
        finally:
            page.close(verbose=False)
            viewings.close_all()


def launched(page: gr.Blocks, host: str, port: int | None, **options: Any) -> str:
    """Start the server of `page` on a thread and give its address."""
    try:
        _, address, _ = page.launch(
            server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, inbrowser=False, share=False,
            theme=theme(), css_paths=CSS_PATH, footer_links=[], run_history=False, enable_monitoring=False,
            ssr_mode=False, mcp_server=False, pwa=False, **options,
        )  # fmt: skip
    except OSError as error:
        raise ValueError(f"Nothing can listen on {host} port {port}: is a page open there already?") from error
    return str(address)


def theme() -> gr.themes.Base:
    """Gradio's own look with fonts that every system has: nothing is fetched from elsewhere."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
    mono = ["ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
    return gr.themes.Soft(primary_hue="indigo", neutral_hue="slate", font=fonts, font_mono=mono)


def serve(engine: Engine, samples: Sequence[Path] = (), *, on_ready: Callable[[str], None], **options: Any) -> None:
    """Serve the page until interrupted. `on_ready` gets its address; the options are those of `running_page`."""
    with running_page(engine, samples, **options) as address:
        on_ready(address)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


def sample_label(path: Path) -> str:
    return path.stem.replace("_", " ").replace("-", " ")
