"""Work is plain data: threads, processes and any order of doing it come to the same bytes."""

import json
import pickle
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier, Event, Lock

import pytest
import torch

import edgepack
from edgepack.allocate.stage import Allocate
from edgepack.calibration.stage import Calibrate
from edgepack.checkpoint import open_checkpoint
from edgepack.core.executor import Admission, Threads, most_at_once
from edgepack.core.hardware import available_memory
from edgepack.core.progress import finish
from edgepack.core.stage import Stage
from edgepack.decompose.stage import Decompose
from edgepack.errors import CheckpointError
from edgepack.pipeline import run
from tests.support.tiny import TEXT, make_model, write_gguf

SLICED = {"slice": {"width": 32}, "compress": {"bits_per_weight": 6, "damping": [0.1]}}
CHANGED = {"compress": {"format": "q4_0", "rank": 4, "rotate": "hadamard", "pad_width": 64}}
LAYER = {"compress": {"format": "q4_0", "damping": [0.1]}}


class Elsewhere:
    """Another process, in which nothing is known but what an item says."""

    in_process = False

    def __init__(self):
        self.pool = ProcessPoolExecutor(1, get_context("spawn"))

    def map(self, work, items):
        yield from self.pool.map(partial(done, work), items)


def done(work, item):
    torch.set_num_threads(1)
    with torch.no_grad():
        work(item)
    return item


@pytest.fixture(scope="module")
def elsewhere():
    executor = Elsewhere()
    yield executor
    executor.pool.shutdown()


class Backwards:
    """Does the last item first."""

    in_process = False

    def map(self, work, items):
        for item in reversed(items):
            work(item)
        yield from items


def write_recipe(folder: Path, sections: dict, objective: str, model: str = "model") -> Path:
    (folder / "text.txt").write_text("\n".join(TEXT * 30))
    calibrate = {"source": "text.txt", "tokens": 512, "sequence_length": 64}
    given = {"model": model, "calibrate": {**calibrate, "objective": objective}, **sections}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({**given, "export": {"measure": {"tokens": 0}}}))
    return path


def results(stage: Stage) -> dict[str, str]:
    """File → sha256 of what a stage made."""
    return dict(stage.files())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sections", "objective"),
    [(SLICED, "model"), (CHANGED, "guided"), (LAYER, "layer")],
    ids=["sliced to a size", "rotated and padded", "layer by layer"],
)
def test_processes_that_know_only_the_items_make_the_same_files(
    tmp_path, monkeypatch, elsewhere, sections, objective
):
    make_model(tmp_path / "model", tied=False)
    path = write_recipe(tmp_path, sections, objective)
    found = []
    for executor in (Threads(), Backwards(), elsewhere):
        monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / type(executor).__name__))
        plan = edgepack.plan(path)
        finish(run(plan, executor, until="decompose"))
        found.append([results(stage) for stage in plan.stages if isinstance(stage, DONE_BY_ITEMS)])
    assert len(found[0]) == (3 if sections is SLICED else 2)
    assert found[0] == found[1] == found[2]


DONE_BY_ITEMS = (Calibrate, Allocate, Decompose)


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_a_model_is_handed_over_as_the_place_that_it_is_opened_from(tmp_path, kind):
    make_model(tmp_path / "model")
    if kind == "gguf":
        write_gguf(tmp_path / "model.gguf", open_checkpoint("model", tmp_path))
    checkpoint = open_checkpoint("model" if kind == "folder" else "model.gguf", tmp_path)
    sent = pickle.dumps(checkpoint)
    assert len(sent) < 2000
    again = pickle.loads(sent)
    name = next(iter(checkpoint.specs))
    assert again.key == checkpoint.key
    assert again.tensor(name).equal(checkpoint.tensor(name))


def test_a_model_that_has_changed_meanwhile_is_refused(tmp_path):
    make_model(tmp_path / "model")
    sent = pickle.dumps(open_checkpoint("model", tmp_path))
    make_model(tmp_path / "model", seed=1)
    with pytest.raises(CheckpointError, match="has changed"):
        pickle.loads(sent)


def fail(item: int) -> None:
    if item == 1:
        raise ValueError("item 1")


def test_an_error_reaches_who_waits_for_the_item():
    with pytest.raises(ValueError, match="item 1"):
        list(Threads().map(fail, [0, 1, 2]))


# ------------------------------------------------------------------------------ memory


@dataclass(frozen=True)
class Sized:
    """An item that needs memory; what is at work at the same time is noted under its name."""

    name: str
    memory: int
    needs_company: bool = False


AT_WORK: dict[str, list[int]] = {}
"""Name → [items at work now, most of them so far]."""
GUARD, COMPANY = Lock(), Barrier(2)


def work_for_a_while(item: Sized) -> None:
    counts = AT_WORK.setdefault(item.name, [0, 0])
    with GUARD:
        counts[0] += 1
        counts[1] = max(counts)
    if item.needs_company:
        COMPANY.wait(30)
    time.sleep(0.02)
    with GUARD:
        counts[0] -= 1


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
def test_items_that_need_all_memory_are_done_one_after_the_other():
    items = [Sized("large", available_memory()) for _ in range(6)]
    assert list(Threads().map(work_for_a_while, items)) == items
    assert AT_WORK["large"] == [0, 1]


@pytest.mark.usefixtures("four_threads")
def test_items_that_need_little_are_done_side_by_side():
    """Each of the two waits until the other is there."""
    items = [Sized("small", 1 << 20, needs_company=True) for _ in range(2)]
    assert list(Threads().map(work_for_a_while, items)) == items
    assert AT_WORK["small"] == [0, 2]


def becomes(values: list[int], expected: list[int]) -> bool:
    """Whether a list comes to hold what is expected, and still does a moment later."""
    until = time.monotonic() + 30
    while values != expected and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.05)
    return values == expected


def test_work_begins_while_its_sum_fits_and_the_first_in_any_case():
    admission, going = Admission(10), Event()
    begun: list[int] = []

    def take(size: int) -> None:
        with admission.let_in(size):
            begun.append(size)
            going.wait(30)

    with ThreadPoolExecutor(4) as pool:
        for size, expected in ((6, [6]), (4, [6, 4]), (1, [6, 4])):  # 1 more is too much
            pool.submit(take, size)
            assert becomes(begun, expected)
        going.set()
    assert begun == [6, 4, 1]
    with admission.let_in(99):  # nothing else is at work
        assert admission.used == 99
    assert admission.used == 0


def test_a_large_piece_of_work_is_not_overtaken_for_ever():
    admission, going = Admission(10), Event()
    begun: list[int] = []

    def take(size: int) -> None:
        with admission.let_in(size):
            begun.append(size)
            going.wait(30)

    with ThreadPoolExecutor(4) as pool:
        for size in (6, 9, 1, 2):
            pool.submit(take, size)
            assert becomes(begun, [6])  # 1 and 2 would fit, and wait behind 9
        going.set()
    assert begun[:2] == [6, 9]


def fail_when_alone(item: Sized) -> None:
    if item.name == "fails":
        raise ValueError("the first")
    raise AssertionError("work began after an error")


@pytest.mark.usefixtures("four_threads")
def test_what_waits_for_memory_when_an_error_comes_is_left():
    items = [Sized(name, available_memory()) for name in ("fails", "waits", "waits")]
    with pytest.raises(ValueError, match="the first"):
        list(Threads().map(fail_when_alone, items))


@pytest.mark.parametrize(
    ("sizes", "room", "cores", "expected"),
    [([5, 4, 3], 10, 2, 9), ([5, 4, 3], 8, 2, 5), ([5, 4, 3], 8, 4, 8), ([50, 4], 10, 2, 50)],
)
def test_most_at_once_is_the_largest_and_what_fits_beside_it(sizes, room, cores, expected):
    assert most_at_once(sizes, room, cores) == expected
