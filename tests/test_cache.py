"""Stage folders: found again when nothing changed, never when something did, whole or absent."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgepack import cache
from edgepack.cache import Stage, atomic, load_tensors, new_folder, save_tensors
from edgepack.errors import EdgepackError, ExportError

STAGE = Stage("calibrate", 1, {"seed": 0, "nested": {"rank": 4}}, ("model", "text"))


class BoomError(Exception):
    pass


@pytest.fixture(autouse=True)
def cache_root(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fail(message: str) -> ExportError:
    return ExportError(message)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_the_key_changes_with_every_ingredient():
    changed = [
        replace(STAGE, name="decompose"),
        replace(STAGE, version=2),
        replace(STAGE, options={**STAGE.options, "seed": 1}),
        replace(STAGE, options={**STAGE.options, "more": None}),
        replace(STAGE, options={**STAGE.options, "nested": {"rank": 5}}),
        replace(STAGE, inputs=("model", "other text")),
        replace(STAGE, inputs=("text", "model")),
        replace(STAGE, inputs=("model",)),
    ]
    assert len({STAGE.key, *(stage.key for stage in changed)}) == len(changed) + 1


def test_the_key_does_not_depend_on_the_order_of_options():
    other = replace(STAGE, options=dict(reversed(STAGE.options.items())))
    assert other.key == STAGE.key
    assert len(STAGE.key) == 32


def test_the_cache_is_where_the_environment_says(cache_root, monkeypatch):
    assert STAGE.folder == cache_root / "calibrate" / STAGE.key
    monkeypatch.delenv("EDGEPACK_CACHE")
    assert cache.root().name == "edgepack"


def test_a_stage_takes_its_place_when_it_is_whole():
    with STAGE.writing() as folder:
        (folder / "a").write_text("a")
        assert folder.name == f"{STAGE.key}.partial"
        assert not STAGE.is_done
    assert STAGE.is_done
    assert (STAGE.folder / "a").read_text() == "a"
    assert not STAGE.partial.exists()


def fail_in(stage: Stage) -> None:
    with stage.writing() as folder:
        (folder / "finished").write_text("kept")
        raise BoomError


def test_a_failed_stage_keeps_what_it_has_for_the_next_run():
    with pytest.raises(BoomError):
        fail_in(STAGE)
    assert not STAGE.is_done
    with STAGE.writing() as folder:
        assert (folder / "finished").read_text() == "kept"
    assert STAGE.is_done


def test_a_second_writer_is_refused_and_the_first_goes_on():
    again = replace(STAGE)
    with STAGE.writing() as folder:
        (folder / "a").write_text("a")
        with pytest.raises(EdgepackError, match="another edgepack") as refused, again.writing():
            pass
        assert refused.value.hint
        assert "\n" not in str(refused.value)
        with replace(STAGE, version=2).writing():
            pass
    assert names(STAGE.folder) == {"a"}


def test_a_dead_writer_holds_no_lock():
    child = os.fork()
    if not child:
        with STAGE.writing() as folder:
            (folder / "a").write_text("a")
            os._exit(9)
    os.waitpid(child, 0)
    with STAGE.writing() as folder:
        assert names(folder) == {"a"}
    assert STAGE.is_done


def test_a_writer_that_comes_when_all_is_done_does_no_harm():
    """Two runs that both saw no result: the second takes the lock when the first is through."""
    with STAGE.writing() as folder:
        (folder / "a").write_text("first")
    with STAGE.writing() as folder:
        (folder / "a").write_text("second")
    assert names(STAGE.folder) == {"a"}


def write_and_fail(path: Path) -> None:
    with atomic(path) as temporary:
        temporary.write_text("half")
        raise BoomError


def test_atomic_leaves_the_new_file_or_the_old(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(BoomError):
        write_and_fail(path)
    assert list(tmp_path.iterdir()) == []
    with atomic(path) as temporary:
        temporary.write_text("old")
        assert not path.exists()
    with pytest.raises(BoomError):
        write_and_fail(path)
    assert names(tmp_path) == {"file"}
    assert path.read_text() == "old"


def test_tensors_come_back_with_their_description(tmp_path):
    tensors = {"a": torch.arange(6).view(2, 3), "b": torch.tensor([float("inf"), -0.0]).half()}
    about = {"error": 0.125, "formats": {"Q": "q4_0"}, "damping": None, "where": "é"}
    save_tensors(tmp_path / "x", tensors, about)
    found, described = load_tensors(tmp_path / "x")
    assert described == about
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in tensors.items())


def make_folder(path: Path, text: str, *, force: bool = False, failing: bool = False) -> None:
    with new_folder(path, force=force, make_error=fail) as folder:
        (folder / text).write_text(text)
        if failing:
            raise BoomError


def test_a_new_folder_is_whole_or_absent(tmp_path):
    with pytest.raises(BoomError):
        make_folder(tmp_path / "deep" / "out", "a", failing=True)
    assert names(tmp_path / "deep") == set()
    make_folder(tmp_path / "deep" / "out", "a")
    assert names(tmp_path / "deep") == {"out"}
    assert names(tmp_path / "deep" / "out") == {"a"}


def test_an_existing_folder_is_replaced_only_with_force(tmp_path):
    out = tmp_path / "out"
    make_folder(out, "old")
    with pytest.raises(ExportError, match="already exists"):
        make_folder(out, "new")
    with pytest.raises(BoomError):
        make_folder(out, "new", force=True, failing=True)
    assert names(out) == {"old"}
    make_folder(out, "new", force=True)
    assert names(out) == {"new"}
    assert names(tmp_path) == {"out"}


def test_what_a_killed_run_left_beside_the_folder_is_cleared(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "stale").write_text("x")
    make_folder(tmp_path / "out", "new")
    assert names(tmp_path / "out") == {"new"}
