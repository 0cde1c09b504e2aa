"""The wheel carries everything under one name, and the pins cover what is asked for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDERS = ("streaming", "memory", "keyframes", "models", "ui", "bench")
BUILD_SECONDS = 500  # on a busy machine; a limit, not an expectation

pytestmark = pytest.mark.timeout(BUILD_SECONDS + 100)


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def tree_names() -> list[str]:
    """The files of the checkout that git does not ignore, tests left out."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: what belongs into the wheel is unknown")
    names = sorted(set(filter(None, listed.stdout.split("\0"))))
    return [
        name for name in names if not name.startswith("tests/") and (REPOSITORY / name).is_file()
    ]


@pytest.fixture(scope="module")
def wheel(tree_names: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of those files."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    for name in tree_names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((REPOSITORY / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(tree),
    ]
    built = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS)
    if built.returncode and re.search(
        "connection|network|No matching distribution", built.stderr, re.I
    ):
        pytest.skip(f"no build tools to be had: {built.stderr.strip().splitlines()[-1]}")
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel_names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def requirement_names(lines: list[str]) -> set[str]:
    names = (re.match(r"[A-Za-z0-9_.-]+", line) for line in lines)
    return {name.group().lower().replace("_", "-") for name in names if name}


def test_every_folder_with_code_is_in_the_packages_list(project: dict[str, Any]) -> None:
    packages = set(project["tool"]["setuptools"]["packages"])
    files = [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")]
    needed = {".".join(("longlook", *path.parent.relative_to(REPOSITORY).parts)) for path in files}
    assert needed <= packages, f"not packaged: {sorted(needed - packages)}"


def test_everything_asked_for_is_pinned_exactly(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"].values()
    asked = requirement_names(
        project["project"]["dependencies"] + [line for extra in extras for line in extra]
    )
    lines = [
        line
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if line and line[0] != "#"
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    assert asked <= requirement_names(lines), (
        f"not pinned: {sorted(asked - requirement_names(lines))}"
    )


def test_the_wheel_puts_nothing_but_longlook_into_site_packages(wheel_names: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"longlook"}


def test_the_wheel_carries_the_application_and_what_it_needs_at_run_time(
    tree_names: list[str], wheel_names: list[str]
) -> None:
    code = [name for name in tree_names if name.endswith((".py", ".css", ".js"))]
    data = [
        name
        for name in tree_names
        if name.startswith(("models/", "samples/")) and not name.endswith(".py")
    ]
    missing = [name for name in code + data if f"longlook/{name}" not in wheel_names]
    assert not missing, f"left out of the wheel: {missing}"


def test_the_wheel_runs_from_anywhere_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "elsewhere").mkdir()
    code = (
        "import sys, longlook.__main__ as m; print(m.__file__); sys.argv = ['longlook', "
        "'--help']; m.main()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
    )
    assert ran.returncode == 0, ran.stderr
    assert str(tmp_path) in ran.stdout.splitlines()[0], "this was not the wheel"
    assert "serve" in ran.stdout


def test_no_test_travels_in_the_wheel(wheel_names: list[str]) -> None:
    assert not [name for name in wheel_names if "tests" in name.split("/")]
