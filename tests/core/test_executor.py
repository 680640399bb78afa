"""Work is plain data: threads, processes and any order of doing it come to the same bytes."""

import json
import pickle
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

import edgepack
from edgepack.allocate.stage import Allocate
from edgepack.checkpoint import open_checkpoint
from edgepack.core.executor import Threads
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
    assert len(found[0]) == (2 if sections is SLICED else 1)
    assert found[0] == found[1] == found[2]


DONE_BY_ITEMS = (Allocate, Decompose)


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
