"""Several cameras from one file, each into its own session."""

from __future__ import annotations

import signal
import threading
from functools import partial
from pathlib import Path

import pytest

from errors import LonglookError
from memory.folders import summary
from tests.servers.process import Camera
from tests.test_live_watch import PATIENCE_SECONDS, has_chunks, run_command
from tests.waiting import wait_until
from ui.cli.cameras import cameras_in

pytestmark = pytest.mark.timeout(300)


def written(folder: Path, text: str) -> Path:
    path = folder / "cameras.toml"
    path.write_text(text)
    return path


def test_cameras_are_read_with_their_passwords(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOOR", "hushhush")
    (tmp_path / "yard.txt").write_text("other\n")
    path = written(
        tmp_path,
        """
        [read]
        fps = 1
        [[camera]]
        session = "door"
        url = "rtsp://cam@host/one"
        password_env = "DOOR"
        [[camera]]
        session = "yard"
        url = "rtsp://cam@host/two"
        password_file = "yard.txt"
        """,
    )
    door, yard = cameras_in(path)
    assert (door.session, door.address.password) == ("door", "hushhush")
    assert (yard.session, yard.address.password) == ("yard", "other")
    assert "hushhush" not in str(door)
    assert cameras_in(None) == []


@pytest.mark.parametrize(
    ("text", "told"),
    (
        ('[camera]\nsession="a"', "write"),
        ('[[camera]]\nurl="rtsp://h/x"', "no session"),
        ('[[camera]]\nsession="a"\nurl="clip.mp4"', "no camera"),
        ('[[camera]]\nsession="a"\nurl="rtsp://h/x"\npasword="x"', "pasword"),
        ('[[camera]]\nsession="a"\nurl="rtsp://u@h/x"\npassword_env="NOT_SET_HERE"', "not set"),
        (2 * '[[camera]]\nsession="a"\nurl="rtsp://h/x"\n', "two cameras"),
        ("[[camera", "cannot be read"),
    ),
)
def test_mistakes_are_told_in_a_sentence(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(LonglookError, match=told):
        cameras_in(written(tmp_path, text))


@pytest.mark.slow
def test_two_cameras_are_watched_in_one_process(tmp_path: Path) -> None:
    with Camera("web") as one, Camera("rtsp") as other:
        path = written(
            tmp_path,
            f"""
            [[camera]]
            session = "one"
            url = "http://127.0.0.1:{one.port}/live.ts"
            [[camera]]
            session = "other"
            url = "rtsp://127.0.0.1:{other.port}/cam"
            """,
        )
        watching = run_command("watch", "--config", str(path), home=tmp_path)
        lines: list[str] = []
        assert watching.stderr is not None
        reader = threading.Thread(target=lambda: lines.extend(watching.stderr or ()))
        reader.start()
        root = tmp_path / "longlook" / "sessions"
        try:
            for name in ("one", "other"):
                database = root / name / "session.sqlite"
                wait_until(partial(has_chunks, database, 1), PATIENCE_SECONDS)
        finally:
            watching.send_signal(signal.SIGINT)
            watching.wait(PATIENCE_SECONDS)
            reader.join(PATIENCE_SECONDS)
    assert watching.returncode == 0
    said = "".join(lines)
    assert "one: Live:" in said and "other: Live:" in said
    assert summary(root / "one").source != summary(root / "other").source
