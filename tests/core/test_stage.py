"""Stage folders: found again when nothing changed, never when something did, whole or absent."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgepack.core import disk
from edgepack.core.disk import atomic, scratch
from edgepack.core.executor import Threads
from edgepack.core.progress import finish
from edgepack.core.results import LIST
from edgepack.core.stage import Stage
from edgepack.core.weight_files import load_tensors, save_tensors
from edgepack.errors import EdgepackError
from tests.support.stages import Made, writing

STAGE = Made(given={"seed": 0, "nested": {"rank": 4}}, inputs=("model", "text"))


class BoomError(Exception):
    pass


@pytest.fixture(autouse=True)
def cache_root(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_the_key_changes_with_every_ingredient():
    changed = [
        replace(STAGE, name="decompose"),
        replace(STAGE, code=("edgepack.model.decoder",)),
        replace(STAGE, given={**STAGE.given, "seed": 1}),
        replace(STAGE, given={**STAGE.given, "more": None}),
        replace(STAGE, given={**STAGE.given, "nested": {"rank": 5}}),
        replace(STAGE, inputs=("model", "other text")),
        replace(STAGE, inputs=("text", "model")),
        replace(STAGE, inputs=("model",)),
    ]
    assert len({STAGE.key, *(stage.key for stage in changed)}) == len(changed) + 1


def test_the_key_does_not_depend_on_the_order_of_options():
    other = replace(STAGE, given=dict(reversed(STAGE.given.items())))
    assert other.key == STAGE.key
    assert len(STAGE.key) == 32


def test_the_cache_is_where_the_environment_says(cache_root, monkeypatch):
    assert STAGE.folder == cache_root / "calibrate" / STAGE.key
    monkeypatch.delenv("EDGEPACK_CACHE")
    assert disk.root().name == "edgepack"


def test_a_stage_takes_its_place_when_it_is_whole():
    with writing(STAGE) as folder:
        (folder / "a").write_text("a")
        assert folder.name == f"{STAGE.key}.partial"
        assert not STAGE.is_done
    assert STAGE.is_done
    assert (STAGE.folder / "a").read_text() == "a"
    assert not STAGE.partial.exists()


def fail_in(stage: Stage) -> None:
    with writing(stage) as folder:
        (folder / "finished").write_text("kept")
        raise BoomError


def test_a_failed_stage_keeps_what_it_has_for_the_next_run():
    with pytest.raises(BoomError):
        fail_in(STAGE)
    assert not STAGE.is_done
    with writing(STAGE) as folder:
        assert (folder / "finished").read_text() == "kept"
    assert STAGE.is_done


def test_what_a_killed_run_was_writing_is_no_part_of_the_result():
    """Listed, it would be missing later, and all the work be done again."""
    STAGE.partial.mkdir(parents=True)
    for name in ("stage.json.tmp", "made-0.tmp"):
        (STAGE.partial / name).write_text("half")
    finish(STAGE.complete(Threads()))
    assert set(STAGE.files()) == {"made-0"}
    assert STAGE.is_whole()


def test_a_second_run_waits_for_the_first_says_so_and_takes_its_result():
    second = replace(STAGE).complete(Threads())
    with writing(STAGE) as folder:
        (folder / "a").write_text("a")
        for _ in range(2):
            step = next(second)
            assert step.stage == STAGE.name
            assert f"waiting for process {os.getpid()}, since " in step.label
        with writing(replace(STAGE, code=("edgepack.model.decoder",))):
            pass  # others go on
    assert list(second) == []
    assert names(STAGE.folder) == {"a", LIST}


def test_a_dead_writer_holds_no_lock():
    child = os.fork()
    if not child:
        with writing(STAGE) as folder:
            (folder / "a").write_text("a")
            os._exit(9)
    os.waitpid(child, 0)
    with writing(STAGE) as folder:
        assert names(folder) == {"a"}
    assert STAGE.is_done


def test_a_writer_that_comes_when_all_is_done_does_no_harm():
    """Two runs that both saw no result: the second takes the lock when the first is through."""
    with writing(STAGE) as folder:
        (folder / "a").write_text("first")
    with writing(STAGE) as folder:
        (folder / "a").write_text("second")
    assert (STAGE.folder / "a").read_text() == "first"
    assert STAGE.is_whole()


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


def finished() -> dict[str, Path]:
    with writing(STAGE) as folder:
        (folder / "deep").mkdir()
        for name in ("a", "deep/b"):
            (folder / name).write_text(name * 100)
    return {name: STAGE.folder / name for name in ("a", "deep/b", LIST)}


DAMAGES = {
    "a bit": lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:],
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"x",
}


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["a", "deep/b"])
def test_a_damaged_stage_is_made_anew(name, how):
    path = finished()[name]
    assert STAGE.is_whole()
    path.write_bytes(DAMAGES[how](path.read_bytes()))
    assert STAGE.is_done
    assert not STAGE.is_whole()
    assert not STAGE.folder.exists()
    finished()
    assert STAGE.is_whole()


def test_a_stage_that_lacks_a_file_is_made_anew():
    finished()["deep/b"].unlink()
    assert not STAGE.is_whole()
    assert not STAGE.folder.exists()


@pytest.mark.parametrize("how", ["cut", "empty"])
def test_a_stage_whose_list_is_lost_is_the_users_to_remove(how):
    path = finished()[LIST]
    path.write_bytes(DAMAGES[how](path.read_bytes()))
    with pytest.raises(EdgepackError, match="damaged") as refused:
        STAGE.is_whole()
    assert str(STAGE.folder) in refused.value.hint
    assert STAGE.folder.exists()


def test_a_damaged_stage_with_files_of_the_user_is_not_removed():
    finished()["a"].write_text("x")
    (STAGE.folder / "mine").write_text("keep")
    with pytest.raises(EdgepackError, match="did not write"):
        STAGE.is_whole()
    assert (STAGE.folder / "mine").read_text() == "keep"


def test_a_stage_says_what_it_was_made_with():
    finished()
    said = json.loads((STAGE.folder / LIST).read_text())
    assert said["options"] == STAGE.options()
    assert said["inputs"] == list(STAGE.inputs)
    assert {"python", "torch", "edgepack"} <= said["versions"].keys()


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_of_a_stage_that_goes_on_is_one_line(tmp_path, how):
    save_tensors(tmp_path / "x", {"a": torch.zeros(99)}, {})
    data = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(DAMAGES[how](data[:400]))
    with pytest.raises(EdgepackError, match="damaged") as refused:
        load_tensors(tmp_path / "x")
    assert "\n" not in str(refused.value)


def test_no_locks_are_left(cache_root):
    finished()
    with scratch():
        pass
    assert not list((cache_root / "locks").iterdir())
    assert not list((cache_root / "scratch").iterdir())


def test_what_killed_processes_left_is_cleared_and_what_live_ones_use_is_not(cache_root):
    child = os.fork()
    if not child:
        with scratch() as folder:
            (folder / "original.gguf").write_text("14 GB")
            os._exit(9)
    os.waitpid(child, 0)
    assert len(list((cache_root / "scratch").iterdir())) == 1
    with scratch() as mine:
        assert list((cache_root / "scratch").iterdir()) == [mine]
        with scratch() as other:
            assert mine.exists()
            assert other != mine
    assert not list((cache_root / "scratch").iterdir())


def test_a_stage_runs_once_and_is_gone_when_it_is_dropped():
    steps = [step.stage for step in STAGE.complete(Threads())]
    assert steps == ["calibrate"]
    assert (STAGE.folder / "made-0").read_text() == "step 0"
    assert list(STAGE.complete(Threads())) == []
    assert list(STAGE.files()) == ["made-0"]
    STAGE.drop()
    assert not STAGE.is_done


def test_dropping_leaves_what_edgepack_did_not_write():
    finish(STAGE.complete(Threads()))
    (STAGE.folder / "mine").write_text("keep")
    with pytest.raises(EdgepackError, match="did not write"):
        STAGE.drop()
    assert (STAGE.folder / "mine").read_text() == "keep"
