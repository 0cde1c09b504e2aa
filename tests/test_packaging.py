"""The wheel carries everything under one name, and the pins cover what is asked for."""

from __future__ import annotations

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


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The files inside a wheel built from a copy of the tracked tree."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout: what belongs into the wheel is unknown")
    for name in filter(None, tracked.stdout.split("\0")):
        source = REPOSITORY / name
        if source.is_file() and not name.startswith("tests/"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(source.read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(tree)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=100)
    if built.returncode and re.search("connection|network|resolve|No matching distribution", built.stderr, re.I):
        pytest.skip(f"no build tools to be had: {built.stderr.strip().splitlines()[-1]}")
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
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
    asked = requirement_names(project["project"]["dependencies"] + [line for extra in extras for line in extra])
    lines = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    assert asked <= requirement_names(lines), f"not pinned: {sorted(asked - requirement_names(lines))}"


def test_the_wheel_puts_nothing_but_longlook_into_site_packages(wheel_names: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"longlook"}


def test_the_wheel_carries_the_application_and_what_it_needs_at_run_time(wheel_names: list[str]) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True).stdout.splitlines()
    code = [name for name in tracked if name.endswith(".py") and not name.startswith("tests/")]
    data = [name for name in tracked if name.endswith((".safetensors", ".mp4", ".json"))]
    missing = [name for name in code + data if (REPOSITORY / name).exists() and f"longlook/{name}" not in wheel_names]
    assert not missing, f"left out of the wheel: {missing}"


def test_no_test_travels_in_the_wheel(wheel_names: list[str]) -> None:
    assert not [name for name in wheel_names if "tests" in name.split("/")]
