"""Several builds at a time on one cache: each comes to the bytes that it has alone."""

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

import edgepack
from edgepack.core import stage as stages
from edgepack.core.cache import entries
from edgepack.core.disk import clean
from tests.support.dying import files, fork
from tests.support.recipes import write_recipe, write_texts
from tests.support.stages import ended, wait_for
from tests.support.tiny import make_model

pytestmark = pytest.mark.slow

FORMATS = {"one": "q4_0", "two": "q8_0"}
QUICK = {"iterations": 1, "damping": [0.03]}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Two recipes that share everything but their formats, and what each comes to alone."""
    folder = tmp_path_factory.mktemp("home")
    make_model(folder / "model", intermediate=128)
    write_texts(folder, 4)
    for name, fmt in FORMATS.items():
        write_recipe(folder, name, compress={"format": fmt, **QUICK})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPACK_CACHE", str(folder / "own"))
        for name in FORMATS:
            edgepack.build(folder / f"{name}.yaml", out=folder / name)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build(home: Path, name: str, out: Path, log: Path | None = None):
    """A process that builds; it logs the stages that it runs itself."""

    def work() -> None:
        writing = stages.Stage._writing

        def logged(stage):
            if log:
                with log.open("a") as file:
                    file.write(f"{stage.name}\n")
            return writing(stage)

        stages.Stage._writing = logged
        edgepack.build(home / f"{name}.yaml", out=out, progress=lambda _: time.sleep(0.01))

    return fork(work)


def assert_whole(home: Path, outs: dict[Path, str], cache: Path) -> None:
    for out, name in outs.items():
        assert files(out) == files(home / name)
        assert not list(out.parent.glob(".*"))
    clean()
    assert not list((cache / "locks").iterdir())
    assert not [*cache.glob("*/*.partial"), *cache.glob("*/*.removed"), *cache.glob("export/*")]
    assert [entry for entry in entries(cache) if entry.result.damaged()] == []


def test_what_two_recipes_share_is_made_once(home, cache, tmp_path):
    outs = {tmp_path / f"out-{number}": name for number, name in enumerate(("one", "two", "one"))}
    children = [build(home, name, out, tmp_path / "log") for out, name in outs.items()]
    assert [ended(child, 300) for child in children] == [0, 0, 0]
    made = Counter((tmp_path / "log").read_text().split())
    assert made["calibrate"] == made["grids"] == made["check"] == 1
    assert made["decompose"] == 2
    assert_whole(home, outs, cache)


def test_one_is_killed_in_the_middle_while_the_cache_is_pruned(home, cache, tmp_path):
    """The third process removes every result that it may, again and again."""
    outs = {tmp_path / "out-0": "one", tmp_path / "out-1": "two"}

    def prune() -> None:
        while not all((out / "manifest.json").exists() for out in outs):
            for entry in entries(cache):
                entry.remove()

    first = build(home, "one", tmp_path / "out-0")
    wait_for(lambda: any(cache.glob("calibrate/*.partial/*")))
    second, pruner = build(home, "two", tmp_path / "out-1"), fork(prune)
    time.sleep(0.2)
    os.kill(first, signal.SIGKILL)
    assert ended(first) == -signal.SIGKILL
    again = build(home, "one", tmp_path / "out-0")
    assert [ended(child, 300) for child in (second, again, pruner)] == [0, 0, 0]
    assert_whole(home, outs, cache)
