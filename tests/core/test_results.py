"""Several processes on one cache: they wait for one another, take over from the dead, and never
remove what another reads."""

from __future__ import annotations

import os
import shutil
import signal
import time

import pytest

from edgepack.core.cache import entries, unused
from edgepack.core.disk import clean, lock_of
from edgepack.core.executor import Threads
from edgepack.core.progress import finish
from edgepack.core.results import HANDED, handing_over, settle
from tests.support.dying import dies_before, fork
from tests.support.stages import Made, ended, wait_for, writing

STEPS = 6


@pytest.fixture(autouse=True)
def cache_root(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def stage(tmp_path):
    return Made(steps=STEPS, pause=0.02, log=tmp_path / "log")


def complete(stage):
    finish(stage.complete(Threads()))


def made(stage):
    """Who made which steps."""
    return [tuple(map(int, line.split())) for line in stage.log.read_text().splitlines()]


def assert_nothing_is_left(cache_root):
    assert not [p for p in cache_root.rglob("*") if p.suffix in (".lock", ".partial", ".removed")]
    assert not list((cache_root / "locks").iterdir())


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_that_come_to_the_same_stage_do_it_once(stage, cache_root, processes):
    children = [fork(lambda: complete(stage)) for _ in range(processes)]
    assert [ended(child) for child in children] == [0] * processes
    assert sorted(number for _, number in made(stage)) == list(range(STEPS))
    assert len({pid for pid, _ in made(stage)}) == 1
    assert stage.is_whole()
    assert_nothing_is_left(cache_root)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_when_one_is_killed_another_goes_on_where_it_was(stage, cache_root, how):
    first = fork(lambda: complete(stage))
    wait_for(lambda: stage.log.exists() and len(made(stage)) >= 2)
    others = [fork(lambda: complete(stage)) for _ in range(2)]
    os.kill(first, how)
    assert ended(first) == -how
    assert [ended(child) for child in others] == [0, 0]
    numbers = [number for _, number in made(stage)]
    assert set(numbers) == set(range(STEPS))
    assert len(numbers) <= STEPS + 1  # at most the one it was killed in is made again
    assert {pid for pid, _ in made(stage)} - {first} <= set(others)
    assert stage.is_whole()
    clean()
    assert_nothing_is_left(cache_root)


def test_a_result_that_somebody_reads_is_not_removed(stage, cache_root):
    complete(stage)
    reads = cache_root / "reads"

    def read():
        with stage.in_use():
            reads.touch()
            wait_for(lambda: not reads.exists())
            assert stage.result.damaged() == []

    reader = fork(read)
    wait_for(reads.exists)
    (entry,) = entries(cache_root)
    assert entry.state == "in use"
    assert [one.pid for one in entry.holders] == [reader]
    assert not entry.remove()
    stage.drop()
    clean()
    assert stage.is_whole()
    reads.unlink()
    assert ended(reader) == 0
    stage.drop()
    assert not stage.is_done
    assert_nothing_is_left(cache_root)


def test_a_reader_that_was_killed_holds_nothing(stage, cache_root):
    complete(stage)

    def die():
        with stage.in_use():
            os.kill(os.getpid(), signal.SIGKILL)

    assert ended(fork(die)) == -signal.SIGKILL
    assert entries(cache_root)[0].state == "whole"
    assert stage.result.remove()
    assert_nothing_is_left(cache_root)


def test_what_is_being_made_is_not_removed(stage, cache_root):
    with writing(stage):
        (entry,) = entries(cache_root)
        assert (entry.state, entry.partial) == ("in use", True)
        assert not entry.remove()
        assert stage.partial.exists()
    assert stage.is_done


def test_the_last_of_two_that_read_a_result_drops_it(stage):
    complete(stage)
    with stage.in_use():
        stage.drop()  # as another run does at its end
        assert stage.is_whole()
    stage.drop()
    assert not stage.is_done


def test_removing_while_others_make_and_read_damages_nothing(stage):
    """One process removes all it may; two more want the result, and hold it while they look."""
    stage = Made(steps=2, log=stage.log)
    end = time.monotonic() + 1.5

    def remove():
        while time.monotonic() < end:
            stage.drop()
            clean()

    def use():
        while time.monotonic() < end:
            with stage.in_use():
                complete(stage)
                for number in range(2):
                    text = (stage.folder / f"made-{number}").read_text()
                    assert text == f"step {number}"

    children = [fork(work) for work in (remove, use, use)]
    assert [ended(child) for child in children] == [0, 0, 0]
    assert len(made(stage)) > 4  # it was removed indeed


def test_two_that_find_the_same_damage_remove_it_once(stage):
    complete(stage)
    (stage.folder / "made-0").write_text("damaged")
    assert stage.result.damaged() == ["made-0"]
    first, second = stage.result, stage.result
    first.remove_damaged()
    complete(stage)
    second.remove_damaged()  # it found the damage before the first one removed it
    assert stage.is_whole()


def test_a_use_is_noted_and_what_was_not_used_is_found(stage, cache_root):
    names = ["text", "calibrate", "calibrate"]
    stages = [Made(name, given={"number": number}) for number, name in enumerate(names)]
    for age, one in enumerate(stages):
        complete(one)
        then = time.time() - 1000 * (age + 1)
        os.utime(one.folder / "stage.json", (then, then))

    def old(**options):
        return {e.result.key for e in unused(entries(cache_root), time.time() - 500, **options)}

    keys = [one.key for one in stages]
    assert old() == set(keys)
    assert old(keep_last=1) == {keys[2]}
    assert stages[2].is_whole()
    assert old() == set(keys[:2])


# ---------------------------------------------------------------------------- handing over


def hand_over(stage, place):
    """A result goes to a folder, as those of exports and trainings do."""
    working = place / "working"
    shutil.rmtree(working, ignore_errors=True)
    shutil.copytree(stage.folder, working)
    with handing_over([stage.result], working, place / "out"):
        working.rename(place / "out")


def test_killed_before_any_file_operation_a_result_is_in_one_place(tmp_path, cache_root):
    """Never in neither, and not in both once the next run has begun."""
    operations, killed, states = 0, True, set()
    while killed:
        place = tmp_path / f"place-{operations}"
        place.mkdir()
        stage = Made(given={"number": operations})
        complete(stage)
        killed = dies_before(operations, lambda p=place, s=stage: hand_over(s, p))
        handed = (place / "out").exists()
        assert handed or stage.is_done
        states.add((handed, stage.is_done))
        clean()
        settle()
        assert stage.is_done != handed
        if not handed:
            hand_over(stage, place)
            settle()
        assert not stage.is_done
        assert not [*(cache_root / HANDED).iterdir(), *(cache_root / "locks").iterdir()]
        operations += 1
    assert states == {(False, True), (True, True), (True, False)}


def test_a_note_of_a_live_process_is_left_to_it(tmp_path, stage):
    complete(stage)
    (tmp_path / "working").mkdir()
    with handing_over([stage.result], tmp_path / "working", tmp_path / "out"):
        (tmp_path / "working").rename(tmp_path / "out")
        settle()
        assert stage.is_done
        assert lock_of("gate").parent.is_dir()
    assert not stage.is_done


def test_an_error_while_handing_over_keeps_the_result(tmp_path, stage, cache_root):
    complete(stage)
    (tmp_path / "working").mkdir()
    with (
        pytest.raises(OSError, match="full"),
        handing_over([stage.result], tmp_path / "working", tmp_path / "out"),
    ):
        raise OSError("full")
    assert stage.is_whole()
    assert not [*(cache_root / HANDED).iterdir()]
