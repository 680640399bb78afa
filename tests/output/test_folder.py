"""Output folders: whole or absent, and nothing is lost that edgepack did not write itself."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from edgepack.core.artifact import MANIFEST, Artifact, digest
from edgepack.core.disk import clean
from edgepack.core.executor import Threads
from edgepack.core.progress import finish
from edgepack.core.results import settle
from edgepack.errors import EdgepackError, ExportError
from edgepack.output import folder as output
from tests.support.dying import dies_before
from tests.support.stages import Made


class BoomError(Exception):
    pass


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / "recipes").mkdir()
    return folder


def manifest(files: dict[str, object]) -> dict[str, object]:
    """The least that is a manifest."""
    return {
        "edgepack": "0",
        "target": "gguf",
        "model": {"model": "m"},
        "recipe": {},
        "versions": {},
        "stages": {},
        "bytes": {},
        "bits_per_weight": {"blocks": 4.5, "all": 5},
        "fallbacks": [],
        "warnings": [],
        "weights": {},
        "measured": {"skipped": "no"},
        "files": files,
    }


def fill(folder: Path, text: str) -> None:
    """What a build would write."""
    (folder / "deep").mkdir()
    for name in ("base.gguf", "deep/er"):
        (folder / name).write_text(text)
    listed = {name: digest(folder / name) for name in ("base.gguf", "deep/er")}
    (folder / MANIFEST).write_text(json.dumps(manifest(listed)))


def build(
    path: Path, text: str, *, force=False, sources=(), recipe=None, failing=False, results=()
) -> None:
    recipe = recipe or path.parent / "recipes"
    with output.writing(path, force=force, sources=sources, recipe=recipe) as found:
        fill(found.folder, text)
        if failing:
            raise BoomError
        found.publish(results)


def content(path: Path) -> str:
    """The text of a build that is whole."""
    return (Artifact.open(path).folder / "deep/er").read_text()


def hidden(place: Path) -> list[str]:
    return [path.name for path in place.iterdir() if path.name.startswith(".")]


def test_the_folder_is_whole_or_absent(place):
    with pytest.raises(BoomError):
        build(place / "out", "first", failing=True)
    assert not (place / "out").exists()
    build(place / "out", "first")
    assert content(place / "out") == "first"
    assert not hidden(place)


def test_force_replaces_what_a_build_wrote_and_only_that(place):
    build(place / "out", "old")
    with pytest.raises(ExportError, match="already exists"):
        build(place / "out", "new")
    with pytest.raises(BoomError):
        build(place / "out", "new", force=True, failing=True)
    assert content(place / "out") == "old"
    build(place / "out", "new", force=True)
    assert content(place / "out") == "new"
    assert not hidden(place)


MINE = {
    "a file beside ours": lambda out: (out / "tuned.gguf").write_text("a week"),
    "a file further down": lambda out: (out / "deep" / "tuned.gguf").write_text("a week"),
    "ours, changed": lambda out: (out / "base.gguf").write_text("tuned"),
    "a link": lambda out: (out / "link").symlink_to(out.parent),
    "no manifest": lambda out: (out / MANIFEST).unlink(),
    "a damaged manifest": lambda out: (out / MANIFEST).write_text("{}"),
    "another's manifest": lambda out: (out / MANIFEST).write_text('{"files": {"../recipes": 1}}'),
}


@pytest.mark.parametrize("what", MINE)
def test_force_refuses_a_folder_with_anything_of_the_users(place, what):
    build(place / "out", "old")
    MINE[what](place / "out")
    before = sorted(place.rglob("*"))
    with pytest.raises(ExportError) as refused:
        build(place / "out", "new", force=True)
    assert refused.value.hint
    assert "\n" not in str(refused.value)
    assert sorted(place.rglob("*")) == before


def test_what_the_user_puts_there_while_a_build_works_is_kept(place):
    build(place / "out", "old")
    with output.writing(place / "out", force=True, sources=(), recipe=place) as found:
        fill(found.folder, "new")
        (place / "out/notes").write_text("mine")
        with pytest.raises(ExportError, match="did not write: notes"):
            found.publish()
    assert (place / "out/notes").read_text() == "mine"
    (place / "out/notes").unlink()
    assert content(place / "out") == "old"
    assert not hidden(place)


@pytest.mark.parametrize("link", [False, True])
def test_sources_are_never_replaced(place, link):
    """The output is a source, holds one, lies in one or holds the recipe, by whatever name."""
    build(place / "model", "weights")
    out = place / "model"
    if link:
        (place / "link").symlink_to(out)
        out = place / "link"
    for sources in ([place / "model"], [place / "model/deep"], [place / "model/base.gguf"]):
        with pytest.raises(ExportError, match="which the build reads"):
            build(out, "packed", force=True, sources=sources)
    with pytest.raises(ExportError, match="which the build reads"):
        build(place, "packed", force=True, recipe=place / "recipes")
    build(place / "inner", "old")
    with pytest.raises(ExportError, match="lies in what the build reads"):
        build(place / "inner", "packed", force=True, sources=[place])
    assert content(place / "model") == "weights"


@pytest.mark.parametrize("name", ["cache", "cache/text", "."])
def test_the_cache_is_no_place_for_an_output(tmp_path, place, name):
    (tmp_path / "cache").mkdir()
    with pytest.raises(ExportError, match="cache"):
        build(tmp_path / name, "new", force=True)


def test_folders_of_the_user_with_names_like_ours_are_left_alone(place):
    names = ("out.partial", ".out.edgepack-mine", ".out.edgepack-0123456789ab")
    for name in names:
        (place / name).mkdir()
        (place / name / "thesis").write_text("years of work")
    (place / names[2] / output.MARK).write_text('{"output": "other"}')
    build(place / "out", "new")
    assert all((place / name / "thesis").exists() for name in names)


PLACES = {
    "below a file": "file/out",
    "a link to nowhere": "dangling",
    "a long name": "x" * 300,
    "no folder can be made there": "/proc/out",
    "a zero byte": "a\0b",
}


@pytest.mark.parametrize("where", PLACES)
def test_what_cannot_be_written_is_said_before_any_work(place, where):
    (place / "file").write_text("x")
    (place / "dangling").symlink_to("nowhere/at/all")
    with (
        pytest.raises(ExportError) as refused,
        output.writing(place / PLACES[where], force=False, sources=(), recipe=place),
    ):
        raise AssertionError("the work began")
    assert refused.value.hint
    assert len(str(refused.value)) < 300


@pytest.mark.slow
def test_a_second_build_of_the_same_folder_is_refused_at_once(place):
    """By name, by a link to it, and from a process with another cache."""
    (place / "link").symlink_to(place)
    with output.writing(place / "out", force=False, sources=(), recipe=place) as first:
        for path in (place / "out", place / "link/out"):
            with pytest.raises(ExportError, match="another edgepack is writing it"):
                build(path, "second")
        code = (
            "import sys; from pathlib import Path; from edgepack.output.folder import writing\n"
            "with writing(Path(sys.argv[1]), force=False, sources=(), recipe=Path('.')): pass"
        )
        environment = os.environ | {"EDGEPACK_CACHE": str(place / "other-cache")}
        command = [sys.executable, "-c", code, place / "out"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert "another edgepack is writing it" in done.stderr
        fill(first.folder, "first")
        first.publish()
    assert content(place / "out") == "first"
    build(place / "other", "two folders at a time are fine")
    assert not hidden(place)


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True])
def test_killed_at_any_moment_the_old_or_the_new_folder_is_whole(place, old):
    operations = 0
    while True:
        if old:
            with suppress(ExportError):
                build(place / "out", "old")
        killed = dies_before(operations, lambda: build(place / "out", "new", force=True))
        if not killed:
            break
        if (place / "out").exists():
            assert content(place / "out") in ("old", "new", "again")  # of the last turn
        build(place / "out", "again", force=True)  # the next run finds its way, and clears up
        assert content(place / "out") == "again"
        assert not hidden(place)
        operations += 1
    assert operations > (8 if old else 3)
    assert content(place / "out") == "new"
    assert not hidden(place)


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True])
def test_killed_at_any_moment_a_result_is_handed_over_or_there(place, old):
    """And the next run leaves neither it nor a note of it."""
    operations, killed = 0, True
    while killed:
        stage = Made(given={"number": operations})
        finish(stage.complete(Threads()))
        if old:
            build(place / "out", "old", force=True)
        else:
            shutil.rmtree(place / "out", ignore_errors=True)
        results = [stage.result]
        killed = dies_before(
            operations, lambda r=results: build(place / "out", "new", force=True, results=r)
        )
        handed = (place / "out").exists() and content(place / "out") == "new"
        assert handed or stage.is_whole() or hidden(place)  # between the renames it has no name yet
        clean()
        settle()
        build(place / "out", "again", force=True, results=results)
        assert not stage.is_done
        assert not hidden(place)
        cache = place.parent / "cache"
        assert not [*(cache / "handed-over").iterdir(), *(cache / "locks").iterdir()]
        operations += 1
    assert operations >= 12


@pytest.mark.parametrize(
    "left", [(), ("lock",), ("edgepack-output.json.tmp",), ("edgepack-output.json",)]
)
def test_a_working_folder_that_was_just_made_is_cleared_up(place, left):
    work = place / f".out.edgepack-{'0' * 12}"
    work.mkdir()
    for name in left:
        (work / name).write_text(json.dumps({"output": "out"}))
    build(place / "out", "new")
    assert not hidden(place)


def test_between_the_two_renames_nothing_is_lost(place, monkeypatch):
    """Killed when the old folder is aside and the new one has no name yet: the next run, even one
    that fails, first puts the new one in its place."""
    build(place / "out", "old")
    rename = Path.rename

    def dying(self, target):
        if Path(target) == place / "out":
            os._exit(9)
        return rename(self, target)

    child = os.fork()
    if not child:
        Path.rename = dying
        with suppress(BaseException):
            build(place / "out", "new", force=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not (place / "out").exists()
    with pytest.raises(EdgepackError, match="already exists"):
        build(place / "out", "newer")
    assert content(place / "out") == "new"
    assert not hidden(place)


def test_names_in_errors_are_short_and_on_one_line(place):
    build(place / ("a\nb" + "x" * 200), "old")
    with pytest.raises(ExportError) as refused:
        build(place / ("a\nb" + "x" * 200), "new")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300
