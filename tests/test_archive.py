"""Archives: found, captioned, taken up again after any end, written as other tools read it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from app import app
from archive import captioner, runner
from archive.captioner import Archive, ModelChoice
from archive.export import as_srt, as_webvtt, check_formats
from archive.ledger import Entry, Ledger
from archive.manifest import Video, content_id, find_videos, shard_of
from archive.runner import BATCH_SEGMENTS, Journal
from archive.segments import segments
from archive.settings import CaptionSettings, Field, fields_of
from archive.workers import Update, run_tasks
from errors import LonglookError
from frames import Frame
from streaming.engine import Engine, load_engine
from tests.clips import write_clip
from tests.crashing import Order, make_nothing, obey
from tests.tiny import noise_frames
from tests.waiting import wait_until

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLE = REPOSITORY / "samples" / "one_minute.mp4"
SETTINGS = CaptionSettings(max_seconds=2.0, min_seconds=1.0, max_new_tokens=16)


# --- which videos ---


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_folders_patterns_lists_and_standard_input_name_videos(tmp_path: Path) -> None:
    one, two = touch(tmp_path / "in" / "a.mp4"), touch(tmp_path / "in" / "deep" / "b.MKV")
    touch(tmp_path / "in" / "notes.txt")
    assert [video.name for video in find_videos([str(tmp_path / "in")])] == ["a.mp4", "deep/b.MKV"]
    assert find_videos([str(tmp_path / "in" / "*.mp4")]) == [Video(one, "a.mp4")]
    names = tmp_path / "list.txt"
    names.write_text(f"# all of them\n{two}\n\n{one}\n")
    assert [video.path for video in find_videos([str(names)])] == [two, one]
    assert find_videos(["-"], [f"{one}\n"]) == [Video(one, "a.mp4")]
    assert len(find_videos([str(one), str(tmp_path / "in")])) == 2, "each file once"


def test_files_of_one_name_keep_results_of_their_own(tmp_path: Path) -> None:
    paths = [touch(tmp_path / folder / "clip.mp4") for folder in "abc"]
    names = [video.name for video in find_videos([str(path) for path in paths])]
    assert names == ["clip.mp4", "clip-2.mp4", "clip-3.mp4"]


@pytest.mark.parametrize("word", ["missing.mp4", "none*.mp4", "empty"])
def test_a_word_that_names_no_video_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LonglookError, match=r"There is no (file|video in)"):
        find_videos([word])


def test_content_tells_files_apart_and_not_names(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"one")
    (tmp_path / "c").write_bytes(b"two")
    a, b, c = (content_id(tmp_path / name) for name in "abc")
    assert a == b != c


def test_shards_share_all_videos() -> None:
    contents = [f"{k * 2654435761 % (1 << 32):08x}" for k in range(50)]
    assert {shard_of(content, 4) for content in contents} == {0, 1, 2, 3}


# --- segments and questions ---


def test_segments_cover_all_frames_and_a_short_end_joins_the_one_before() -> None:
    frames = list(noise_frames(37))
    parts = list(segments(iter(frames), 2.0, 2.0, 8.0))
    assert [frame for part in parts for frame in part] == frames
    assert all(len(part) >= 4 for part in parts)
    assert len(list(segments(iter(frames[:2]), 2.0, 2.0, 8.0))) == 1


def test_a_schema_becomes_closed_questions() -> None:
    schema = {
        "type": "object",
        "properties": {
            "has_star": {"type": "boolean", "description": "Is there a star?"},
            "colour": {"enum": ["red", "blue"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 3},
            "note": {"type": "string", "maxLength": 5},
        },
    }
    star, colour, count, note = fields_of(schema)
    assert star.prompt().text == "Is there a star?" and star.value("yes") is True
    assert colour.prompt().choices == ("red", "blue") and colour.value("red") == "red"
    assert count.prompt().choices == ("0", "1", "2", "3") and count.value("2") == 2
    assert note.value("a long text") == "a lon"


@pytest.mark.parametrize(
    "schema",
    [
        [],
        {},
        {"properties": {}},
        {"properties": {"a": 3}},
        {"properties": {"a": {"type": "array"}}},
        {"properties": {"a": {"type": "integer"}}},
        {"properties": {"a": {"type": "integer", "minimum": 0, "maximum": 1000}}},
        {"properties": {"a": {"enum": ["one"]}}},
        {"properties": {"a": {"enum": ["one", "one", "two"]}}},
    ],
)
def test_a_schema_that_cannot_be_asked_gets_a_sentence(schema: Any) -> None:
    with pytest.raises(LonglookError):
        fields_of(schema)


def test_other_settings_have_another_fingerprint() -> None:
    plain = CaptionSettings()
    told = {
        plain.fingerprint("m@1", {}),
        CaptionSettings(max_seconds=4).fingerprint("m@1", {}),
        CaptionSettings(fields=(Field("a", "b?", "boolean"),)).fingerprint("m@1", {}),
        plain.fingerprint("m@2", {}),
        plain.fingerprint("m@1", {"read.fps": 1}),
    }
    assert len(told) == 5
    assert plain.fingerprint("m@1", {}) in told


# --- formats ---


def rows(*texts: str) -> list[dict[str, Any]]:
    return [
        {"start_seconds": 8.0 * k, "stop_seconds": 8.0 * k + 7.9996, "caption": text}
        for k, text in enumerate(texts)
    ]


def test_webvtt_escapes_and_its_cues_touch() -> None:
    text = as_webvtt(rows("a <b> & c\n\nd --> e", "next"))
    assert text == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:08.000\na &lt;b&gt; &amp; c d --&gt; e\n\n"
        "00:00:08.000 --> 00:00:16.000\nnext\n"
    )


def test_srt_has_numbers_commas_and_no_markup() -> None:
    text = as_srt(rows("<b>{\\an8}x</b> --> y"))
    assert text == "1\n00:00:00,000 --> 00:00:08,000\n(b)(\\an8)x(/b) --) y\n"


def test_hours_go_beyond_a_hundred() -> None:
    row = {"start_seconds": 360_000.0, "stop_seconds": 363_599.9996, "caption": "x"}
    assert "100:00:00.000 --> 101:00:00.000" in as_webvtt([row])


def test_unknown_formats_are_told() -> None:
    with pytest.raises(LonglookError, match="no format"):
        check_formats(["xml"])


# --- ledger and journal ---


def entry(name: str, content: str = "c", settings: str = "s") -> Entry:
    return Entry(name, f"/{name}", content, settings)


def test_what_is_done_stays_done_until_content_or_settings_change(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        assert len(ledger.plan([entry("a"), entry("b"), entry("c")])) == 3
        for name in "ab":
            ledger.begin(name)
            ledger.finish(name, 3, 20.0)
        ledger.fail("c", "broken")
    with Ledger(tmp_path) as ledger:
        again = ledger.plan([entry("a"), entry("b", settings="other"), entry("c"), entry("d")])
        assert [video.name for video in again] == ["b", "c", "d"], "what failed is tried again"
        assert next(video.status for video in ledger.entries()) == "done"


def test_a_video_that_ended_two_runs_before_anything_was_done_is_given_up(tmp_path: Path) -> None:
    for _ in range(2):
        with Ledger(tmp_path) as ledger:
            assert ledger.plan([entry("a")])
            ledger.begin("a")
    with Ledger(tmp_path) as ledger:
        assert not ledger.plan([entry("a")])
        assert ledger.entries()[0].status == "failed"


def test_attempts_are_forgotten_once_something_is_safe(tmp_path: Path) -> None:
    for _ in range(4):
        with Ledger(tmp_path) as ledger:
            assert ledger.plan([entry("a")])
            ledger.begin("a")
            ledger.progress("a")


def test_two_runs_on_one_folder_are_refused(tmp_path: Path) -> None:
    with Ledger(tmp_path), pytest.raises(LonglookError, match="another process"):
        Ledger(tmp_path)


def test_a_torn_batch_is_cut_from_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    whole = [{"segment": k} for k in range(BATCH_SEGMENTS)]
    journal.append(whole)
    journal.append([{"segment": 90}, {"segment": 91}])
    with journal.path.open("ab") as file:
        file.write(b'{"segm')
    assert journal.read() == whole
    assert journal.read() == whole
    assert journal.path.read_bytes().count(b"\n") == BATCH_SEGMENTS


# --- workers ---


def orders(folder: Path, **what: str) -> list[Order]:
    return [Order(name, kind, str(folder)) for name, kind in what.items()]


def ends(updates: Iterator[Update]) -> dict[str, Update]:
    return {update.name: update for update in updates if update.is_end}


@pytest.mark.parametrize("num_workers", [2])
def test_a_task_that_ends_its_process_is_given_up_after_two_tries_and_others_go_on(
    tmp_path: Path, num_workers: int
) -> None:
    tasks = orders(
        tmp_path, good="", poison="exit", fault="segfault", once="die once", late="", bad="mistake"
    )
    begun: list[str] = []
    found = ends(run_tasks(tasks, make_nothing, obey, num_workers, 2, begun.append))
    assert found.keys() == {task.name for task in tasks}
    assert "exit code 11" in found["poison"].reason and "2 times" in found["poison"].reason
    assert "SIGSEGV" in found["fault"].reason
    assert found["bad"].reason == "no such thing"
    assert not any(found[name].reason for name in ("good", "once", "late"))
    tries = {name: len(list(tmp_path.glob(f"{name}-*"))) for name in found}
    assert tries == {"good": 1, "poison": 2, "fault": 2, "once": 2, "late": 1, "bad": 1}
    assert sorted(begun) == sorted([*found, "poison", "fault", "once"])


def test_our_own_mistakes_are_named_as_such(tmp_path: Path) -> None:
    (update,) = ends(
        run_tasks(orders(tmp_path, one="bug"), make_nothing, obey, 1, 2, lambda _: None)
    ).values()
    assert update.reason.startswith("KeyError")


# --- captions ---


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load_engine("demo", device="cpu")


def captioned(engine: Engine, folder: Path, video: Path = SAMPLE) -> bytes:
    """What becomes of one video in one process."""
    task = captioner.CaptionTask(video.name, str(video), "key", str(folder), SETTINGS)
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    for _ in captioner.caption_task(engine, task):
        pass
    return (folder / "parts" / "key.jsonl").read_bytes()


def test_a_video_that_is_taken_up_again_becomes_the_same_bytes(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = captioned(engine, tmp_path / "whole")
    lines = whole.splitlines()
    assert len(lines) > BATCH_SEGMENTS, "there must be something to take up"
    assert len({json.loads(line)["caption"] for line in lines}) > 5

    broken = tmp_path / "broken"
    made = Journal.append

    def stop_after_one(self: Journal, rows: Any) -> None:
        made(self, rows)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Journal, "append", stop_after_one)
        captioned(engine, broken)
    prefilled: list[int] = []
    prefill = runner.prefill_segment

    def counted(engine: Any, number: int, part: Any, fps: float) -> Any:
        prefilled.append(number)
        return prefill(engine, number, part, fps)

    monkeypatch.setattr(runner, "prefill_segment", counted)
    assert captioned(engine, broken) == whole
    assert prefilled == list(range(BATCH_SEGMENTS, len(lines))), "finished ones are not done again"


def test_segments_do_not_depend_on_each_other(engine: Engine) -> None:
    """The captions of a batch are those of each segment by itself."""
    frames = list(clip_frames())
    parts = list(segments(iter(frames), 2.0, 1.0, 2.0))[:6]

    def batches(sizes: int) -> list[str]:
        texts = []
        for k in range(0, len(parts), sizes):
            numbered = iter(list(enumerate(parts[k : k + sizes], k)))
            batch = runner._prefill_batch(engine, numbered, 2.0)
            texts += [row["caption"] for row in runner._caption_batch(engine, batch, SETTINGS)]
        return texts

    assert batches(6) == batches(1) == batches(4)
    assert batches(1)[::-1] != batches(1), "all segments say the same"


def clip_frames() -> Iterator[Frame]:
    from streaming.sources.file import FileSource

    return FileSource(SAMPLE, 2.0).frames()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["caption", *map(str, arguments)])


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, one of them long enough for several batches, and one broken file."""
    folder = tmp_path_factory.mktemp("archive")
    write_clip(folder / "b clip's.mp4", 5)
    (folder / "broken.mp4").write_bytes(b"no video" * 100)
    (folder / "c.mp4").write_bytes(SAMPLE.read_bytes())
    return folder


COMMON = ("--max-seconds", 2, "--min-seconds", 1, "--max-tokens", 16, "-q", "Is there a star?")


@pytest.fixture(scope="module")
def finished(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    result = run(archive, "--out", out, *COMMON, "--formats", "jsonl,vtt,srt,parquet")
    assert result.exit_code == 3, result.output
    assert "2 done, 1 failed" in result.stderr
    return out


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_archive_is_captioned_and_a_broken_video_is_a_row_with_its_reason(
    finished: Path,
) -> None:
    videos = {row["video"]: row for row in lines_of(finished / "videos.jsonl")}
    assert videos["broken.mp4"]["status"] == "failed"
    assert "not a video file" in videos["broken.mp4"]["reason"]
    segments_ = lines_of(finished / "captions.jsonl")
    assert {row["video"] for row in segments_} == {"b clip's.mp4", "c.mp4"}
    stars = [row for row in segments_ if row["fields"]["Is there a star?"]]
    assert 0 < len(stars) < len(segments_)
    for row in segments_:
        assert 0 <= row["confidence"]["Is there a star?"] <= 1
        assert (finished / row["thumbnail"]).read_bytes()[:2] == b"\xff\xd8"
    assert (finished / "subtitles" / "c.vtt").read_text().startswith("WEBVTT\n\n00:00:00.000 --> ")
    assert (finished / "subtitles" / "b clip's.srt").read_text().startswith("1\n")


def test_parquet_has_one_schema_and_what_the_lines_have(finished: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(finished / "captions" / "train-00000-of-00001.parquet")
    assert b"huggingface" in table.schema.metadata
    rows_ = table.to_pylist()
    lines = lines_of(finished / "captions.jsonl")
    assert [row["caption"] for row in rows_] == [row["caption"] for row in lines]
    assert [json.loads(row["fields"]) for row in rows_] == [row["fields"] for row in lines]
    assert all(row["thumbnail"]["bytes"][:2] == b"\xff\xd8" for row in rows_)


def test_the_same_command_again_does_nothing_again(archive: Path, finished: Path) -> None:
    before = (finished / "captions.jsonl").read_bytes()
    result = run(archive, "--out", finished, *COMMON)
    assert "3 videos, 1 of them to be captioned" in result.stderr, "the broken one is tried again"
    assert (finished / "captions.jsonl").read_bytes() == before


def test_an_archive_that_is_killed_and_started_again_gives_the_same_bytes(
    archive: Path, finished: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "app.py", "caption", str(archive), "--out", str(tmp_path)]
    command += [*map(str, COMMON), "--workers", "2", "--formats", "jsonl,vtt,srt,parquet"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    try:
        wait_until(
            lambda: (
                any(path.stat().st_size for path in tmp_path.glob("parts/*.jsonl"))
                or process.poll() is not None
            ),
            at_most_seconds=300,
        )
        assert process.poll() is None, "it ended before it was killed"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_until(lambda: not _is_locked(tmp_path), at_most_seconds=60)
    result = run(archive, "--out", tmp_path, *COMMON, "--formats", "jsonl,vtt,srt,parquet")
    assert result.exit_code == 3, result.output
    for name in ("captions.jsonl", "subtitles/c.vtt", "subtitles/c.srt"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes(), name


def _is_locked(folder: Path) -> bool:
    try:
        Ledger(folder).close()
    except LonglookError:
        return True
    return False


@pytest.mark.slow
def test_a_video_that_crashes_its_worker_is_a_row_and_the_others_are_done(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import crashing

    monkeypatch.setattr(captioner, "caption_task", crashing.caption_and_die)
    with Archive(tmp_path, SETTINGS, ModelChoice("demo", "cpu", "auto", {}), "f", ()) as opened:
        entries = opened.plan(find_videos([str(SAMPLE)]))
        list(opened.run(entries, 1, crashing.make_demo))
        (failure,) = opened.failures()
    assert "ended its process 2 times" in failure.reason


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.mp4"], "There is no file missing.mp4"),
        ([SAMPLE, "--formats", "xml"], "no format"),
        ([SAMPLE, "--schema", "missing.json"], "cannot be read"),
        ([SAMPLE, "--shard", "5/4"], "--shard needs the form 1/4"),
        ([SAMPLE, "--shard", "x"], "--shard needs the form 1/4"),
        ([SAMPLE, "--workers", "0"], "--workers needs at least 1"),
        ([SAMPLE, "--min-seconds", "9"], "0 < least <= most"),
        ([SAMPLE, "--prompt", " "], "prompt is empty"),
    ],
)
def test_mistakes_get_one_sentence(tmp_path: Path, arguments: list[object], words: str) -> None:
    result = run(*arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_results_are_not_mixed_with_videos(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", 2)
    result = run(tmp_path, "--out", tmp_path)
    assert result.exit_code == 2 and "output folder" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
