"""The files of docs/extending.md, installed as a stranger would install them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.outside import on_path
from tests.support.tiny import TEXT

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="session")
def page() -> str:
    return (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def blocks(page) -> dict[str, str]:
    """The page's files by name."""
    return {name: f"# {name}\n{text}" for name, text in BLOCK.findall(page)}


@pytest.fixture(scope="session")
def checkout(blocks, tmp_path_factory) -> Path:
    """A folder with the page's files in it."""
    folder = tmp_path_factory.mktemp("stranger")
    for name, text in blocks.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def site(checkout, tmp_path_factory) -> Path:
    """A folder with the package in it, installed by pip."""
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    done = subprocess.run(
        [*pip, *offline, "--target", site, checkout], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture(scope="module")
def installed(site) -> Iterator[None]:
    """This process sees the package, for one module of tests."""
    with on_path(site):
        yield


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working folder with a text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n".join(TEXT * 30))
    return tmp_path
