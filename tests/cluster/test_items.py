"""Items of all stages on the nodes of a cluster, and what it does not do."""

from __future__ import annotations

import pytest

import edgepack
from edgepack.checkpoint import open_checkpoint
from edgepack.cluster import task, worker
from edgepack.cluster.connect import connect, look_at_nodes
from edgepack.cluster.executor import raise_what_went_wrong
from edgepack.cluster.parcel import Parcel
from edgepack.core.executor import Threads
from edgepack.core.progress import finish
from edgepack.errors import EdgepackError
from edgepack.grids.find import Item, find_grid
from edgepack.pipeline import run
from tests.core.test_executor import DONE_BY_ITEMS, LAYER, results, write_recipe
from tests.merge import recipes
from tests.support.tiny import make_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def executor(nodes):
    with connect(nodes.address) as found:
        yield found


def test_blocks_in_turn_come_to_the_same_files(tmp_path, monkeypatch, executor):
    """Objective `layer`: Hessians in a file that is written anew for every block."""
    make_model(tmp_path / "model", tied=False)
    path = write_recipe(tmp_path, LAYER, "layer")
    found = []
    for one in (Threads(), executor):
        monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / type(one).__name__))
        plan = edgepack.plan(path)
        finish(run(plan, one, until="decompose"))
        found.append([results(s) for s in plan.stages if isinstance(s, DONE_BY_ITEMS)])
    assert found[0] == found[1]


def test_a_merge_comes_to_the_same_files(tmp_path, monkeypatch, executor):
    for seed, name in enumerate("ab"):
        make_model(tmp_path / name, seed=seed)
    found, before = [], executor.counts["items"]
    for one in (Threads(), executor):
        monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / type(one).__name__))
        stage = recipes.plan(tmp_path, recipes.LINEAR)
        finish(stage.complete(one))
        found.append(results(stage))
    assert found[0] == found[1]
    assert executor.counts["items"] - before == len(stage.layout.tensors)
    assert 0 < executor.counts["models_sent"] < executor.counts["items"]


def test_another_model_under_the_same_name_is_refused_by_file(tmp_path):
    """The driver opened the model before somebody changed it; a node sees what is there now."""
    make_model(tmp_path / "model")
    model = open_checkpoint("model", tmp_path)
    item = Item(model, next(iter(model.specs)), ("q8_0",), tmp_path)
    parcel = Parcel.pack(find_grid, item, sending_model=False)
    make_model(tmp_path / "model", seed=1)
    about, files = worker.do("a job", 1, parcel, None, None)
    assert files == []
    with pytest.raises(EdgepackError) as caught:
        raise_what_went_wrong(about, item)
    assert "has other files of the model than this machine (model.safetensors)" in str(caught.value)


def test_a_machine_with_other_versions_is_refused_by_name(monkeypatch, executor):
    wanted = task.own_versions() | {"numba": "0.1"}
    monkeypatch.setattr(task, "own_versions", lambda: wanted)
    with pytest.raises(EdgepackError, match=r"cluster: .* has numba [\d.]+, not 0\.1"):
        look_at_nodes(executor.ray)
